/*
 * The way of the I/O guest (io.c) from its PVH entry (flat 32-bit protected mode, EBX the start info) to long mode in
 * ring 0, from there to ring 3, and of a second processor to ring 0. Everything is mapped where it is, for ring 3 too.
 * There is no IDT: no interrupt is ever on, and an exception is the triple fault it would be anyway.
 */
#define NT_PHYS32_ENTRY 18
#define CR0_PE_ET_PG 0x80000011
#define CR4_PAE 0x20
#define EFER 0xc0000080
#define EFER_LME 0x100
#define PRESENT_WRITE_USER 0x7
#define LARGE 0x80
#define CODE0 0x08
#define DATA0 0x10
#define DATA3 0x1b
#define CODE3 0x23
#define TASK 0x28
#define CODE32 0x38
#define RFLAGS 0x2
#define TRAMPOLINE 0x8000

	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 4, NT_PHYS32_ENTRY
	.asciz "Xen"
	.long start

	.text
	.code32
	.globl start
start:
	movl %ebx, start_info
	movl $stack0_top, %esp
	movl $main, %edi
to_long_mode:				/* EDI: what to call there */
	lgdt gdt_pointer
	movl $CR4_PAE, %eax
	movl %eax, %cr4
	movl $pml4, %eax
	movl %eax, %cr3
	movl $EFER, %ecx
	movl $EFER_LME, %eax
	xorl %edx, %edx
	wrmsr
	movl $CR0_PE_ET_PG, %eax
	movl %eax, %cr0
	ljmp $CODE0, $1f
	.code64
1:	movl $DATA0, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	movl %esp, %esp
	movl %edi, %edi
	call *%rdi
	ud2

	/* void enter_ring3(void (*function)(void)): on a stack of its own; does not return. */
	.globl enter_ring3
enter_ring3:
	movl $task, %eax
	movw %ax, gdt + TASK + 2
	shrl $16, %eax
	movb %al, gdt + TASK + 4
	movl $TASK, %eax
	ltr %ax
	movl $DATA3, %eax
	movl %eax, %ds
	movl %eax, %es
	pushq $DATA3
	pushq $stack3_top - 8		/* as if called */
	pushq $RFLAGS
	pushq $CODE3
	pushq %rdi
	iretq

	/* What a second processor starts with, in real mode, once it is copied to TRAMPOLINE. */
	.globl trampoline, trampoline_end
trampoline:
	.code16
	cli
	xorw %ax, %ax
	movw %ax, %ds
	lgdtl TRAMPOLINE + trampoline_gdt_pointer - trampoline
	movl $0x11, %eax
	movl %eax, %cr0
	ljmpl $CODE32, $second_start
	.balign 8
trampoline_gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt
trampoline_end:

	.code32
second_start:
	movl $DATA0, %eax
	movl %eax, %ds
	movl %eax, %es
	movl %eax, %ss
	movl $stack1_top, %esp
	movl $second_main, %edi
	jmp to_long_mode

	.data
	.balign 8
gdt:	.quad 0
	.quad 0x00af9b000000ffff	/* CODE0 */
	.quad 0x00cf93000000ffff	/* DATA0 */
	.quad 0x00cff3000000ffff	/* DATA3 */
	.quad 0x00affb000000ffff	/* CODE3 */
	.quad 0x0000890000000000 + task_end - task - 1, 0	/* TASK: its base is written by enter_ring3 */
	.quad 0x00cf9b000000ffff	/* CODE32 */
gdt_end:
gdt_pointer:
	.word gdt_end - gdt - 1
	.long gdt
	.globl start_info
start_info:
	.long 0

/* Lets ring 3 at every port below 0x400, by the I/O bitmap: software KVM does not know an IOPL. */
	.balign 8
task:	.fill 102, 1, 0
	.word bitmap - task
bitmap:	.fill 0x400 / 8, 1, 0
	.byte 0xff
task_end:

	.balign 4096
pml4:	.quad pdpt + PRESENT_WRITE_USER
	.fill 511, 8, 0
pdpt:	.set table, 0
	.rept 4
	.quad directories + table * 4096 + PRESENT_WRITE_USER
	.set table, table + 1
	.endr
	.fill 508, 8, 0
directories:
	.set page, 0
	.rept 2048
	.quad page * 0x200000 + PRESENT_WRITE_USER + LARGE
	.set page, page + 1
	.endr

	.bss
	.balign 16
	.skip 4096
stack0_top:
	.skip 4096
stack1_top:
	.skip 16384
stack3_top:

	.section .note.GNU-stack, "", @progbits
