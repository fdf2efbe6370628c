"""What a Linux on software KVM is told on its command line (Documentation/admin-guide/kernel-parameters.txt).

A kernel ignores the options it does not know. Some weaken the guest (`mitigations`, `rodata`, `init_on_alloc`), so the
user is told of all of them; one that the user gives again wins.
"""

from __future__ import annotations

#: Features whose instructions software KVM lacks in ring 0, or does wrong, or slowly (`rep movsb`), and their numbers
#: (arch/x86/include/asm/cpufeatures.h), which every kernel takes; none reads more than 127 characters. XSAVE and AVX
#: stay: the kernel must save all that ring 3 can use, and that is what the host has.
HIDDEN_FEATURES = {
    "pclmulqdq": 4 * 32 + 1,
    "ssse3": 4 * 32 + 9,
    "cx16": 4 * 32 + 13,
    "pcid": 4 * 32 + 17,
    "sse4_1": 4 * 32 + 19,
    "sse4_2": 4 * 32 + 20,
    "popcnt": 4 * 32 + 23,
    "aes": 4 * 32 + 25,
    "fsgsbase": 9 * 32 + 0,
    "bmi1": 9 * 32 + 3,
    "avx2": 9 * 32 + 5,
    "smep": 9 * 32 + 7,
    "bmi2": 9 * 32 + 8,
    "erms": 9 * 32 + 9,
    "invpcid": 9 * 32 + 10,
    "adx": 9 * 32 + 19,
    "smap": 9 * 32 + 20,
    "sha_ni": 9 * 32 + 29,
    "xsaveopt": 10 * 32 + 0,
    "xsavec": 10 * 32 + 1,
    "xsaves": 10 * 32 + 3,
    "umip": 16 * 32 + 2,
    "pku": 16 * 32 + 3,
    "rdpid": 16 * 32 + 22,
    "fsrm": 18 * 32 + 4,
}
#: Initialisation functions of stock kernels that run for minutes where ring 0 is interpreted, and that a guest can do
#: without: tracefs with the scans that fill it, /sys/kernel/slab, a self-test, and those that make the kernel parse its
#: type information (BTF).
SLOW_INITCALLS = (
    "ftrace_check_for_weak_functions,trace_eval_init,tracer_init_tracefs,slab_sysfs_init,blake2s_mod_init,"
    "btf_module_init,kfunc_init,bpf_key_sig_kfuncs_init,bpf_prog_test_run_init,bpf_rstat_kfunc_init,"
    "bpf_tcp_ca_kfunc_init,cubictcp_register"
)
#: What keeps a Linux off the instructions that software KVM lacks (vector code in the kernel's ciphers and checksums
#: above all), and off start-up work that takes long there. `percpu_alloc=page` spares it per-CPU areas of 2 MiB, whose
#: 512 pages are looked through at each allocation.
OPTIONS = (
    "mitigations=off",
    f"clearcpuid={','.join(map(str, HIDDEN_FEATURES.values()))}",
    "cryptomgr.notests",
    "init_on_alloc=0",
    "rodata=off",
    "highres=off",
    "percpu_alloc=page",
    f"initcall_blacklist={SLOW_INITCALLS}",
)
