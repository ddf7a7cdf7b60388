# The smallest paravirtual guest that stays: it waits for ever. 1 MiB of memory is enough for it.
#
# Numbers are Xen's public interface: xen/include/public/{xen.h,elfnote.h,sched.h}.

        .set    virt_base, 0xffffffff80000000
        .set    hypercall_sched_op, 29
        .set    sched_poll, 3

        .macro  note type, kind, value:vararg
        .balign 4
        .long   4, 2f - 1f, \type
        .asciz  "Xen"
1:      \kind   \value
2:      .balign 4
        .endm

        .section .note.Xen, "a", @note
        note    6, .asciz, "tiny"               # GUEST_OS
        note    5, .asciz, "xen-3.0"            # XEN_VERSION
        note    8, .asciz, "generic"            # LOADER
        note    9, .asciz, "yes"                # PAE_MODE
        note    3, .quad, virt_base             # VIRT_BASE
        note    4, .quad, virt_base             # PADDR_OFFSET
        note    1, .quad, _start                # ENTRY

        .text
        .globl  _start
_start: mov     $sched_poll, %edi               # no ports and no time limit: only a signal ends it
        lea     poll(%rip), %rsi
        mov     $hypercall_sched_op, %eax
        syscall
        jmp     _start

        .balign 8
poll:   .quad   0, 0, 0
