/*
 * The tiny guest: an ELF with a PVH entry (Xen `public/elfnote.h`, XEN_ELFNOTE_PHYS32_ENTRY) that runs alike under
 * pyvmm and QEMU. It is entered in flat 32-bit protected mode, interrupts off, without a stack, and needs none.
 *
 *   neither           prints "a" on COM1, then idles
 *   READS = n         prints "a", reads the UART's scratch register n times, prints "b", then idles
 *   LOOPS = n         prints "a", counts down from n (two instructions a turn), prints "b", then idles
 */
#define COM1 0x3f8
#define COM1_SCRATCH 0x3ff
#define PIC1_MASK 0x21
#define PIC2_MASK 0xa1
#define NT_PHYS32_ENTRY 18

	.section .note.pvh, "a", @note
	.balign 4
	.long 4, 4, NT_PHYS32_ENTRY
	.asciz "Xen"
	.long start

	.text
	.code32
	.globl start
start:
	movw $COM1, %dx
	movb $'a', %al
	outb %al, %dx

#if defined(READS) || defined(LOOPS)
#ifdef READS
	movl $READS, %ecx
	movw $COM1_SCRATCH, %dx
1:	inb %dx, %al
	decl %ecx
	jnz 1b
#else
	movl $LOOPS, %ecx
1:	decl %ecx
	jnz 1b
#endif
	movw $COM1, %dx
	movb $'b', %al
	outb %al, %dx
#endif

	/* Interrupts are on, so that the VMM does not take this for a machine that is dead; but none ever comes. */
	movb $0xff, %al
	outb %al, $PIC1_MASK
	outb %al, $PIC2_MASK
	sti
2:	hlt
	jmp 2b

	.section .note.GNU-stack, "", @progbits
