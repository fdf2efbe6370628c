"""What a Linux on software KVM is told on its command line (Documentation/admin-guide/kernel-parameters.txt).

A kernel ignores the options it does not know. Some weaken the guest (`mitigations`, `rodata`, `init_on_alloc`), so the
user is told of all of them; one that the user gives again wins.
"""

from __future__ import annotations

#: Features whose instructions software KVM lacks in ring 0, or does wrong, or slowly (`rep movsb`).
HIDDEN_FEATURES = (
    "smap,smep,cx16,umip,fsgsbase,rdpid,invpcid,pcid,xsave,erms,fsrm,popcnt,"
    "ssse3,sse4_1,sse4_2,pclmulqdq,aes,sha_ni,bmi1,bmi2,adx"
)
#: Initialisation functions of stock kernels that run for minutes where ring 0 is interpreted, and that a guest can do
#: without: tracefs with the scans that fill it, /sys/kernel/slab, a self-test, and those that make the kernel parse its
#: type information (BTF).
SLOW_INITCALLS = (
    "ftrace_check_for_weak_functions,trace_eval_init,tracer_init_tracefs,slab_sysfs_init,blake2s_mod_init,"
    "btf_module_init,kfunc_init,bpf_key_sig_kfuncs_init,bpf_prog_test_run_init,bpf_rstat_kfunc_init,"
    "bpf_tcp_ca_kfunc_init,cubictcp_register"
)
#: What keeps a Linux off the instructions that software KVM lacks (vector code in the kernel's ciphers and checksums
#: above all), and off start-up work that takes minutes there.
OPTIONS = (
    "noxsave",
    "mitigations=off",
    f"clearcpuid={HIDDEN_FEATURES}",
    "cryptomgr.notests",
    "init_on_alloc=0",
    "rodata=off",
    "highres=off",
    f"initcall_blacklist={SLOW_INITCALLS}",
)
