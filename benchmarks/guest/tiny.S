# The smallest paravirtual guest that stays: it waits for ever. 1 MiB of memory is enough for it.
#
# Numbers are Xen's public interface: xen/include/public/{xen.h,elfnote.h,sched.h}.

        .set    virt_base, 0xffffffff80000000
        .set    hypercall_sched_op, 29
        .set    sched_poll, 3

        .include "notes.S"
        xen_notes tiny

        .text
        .globl  _start
_start: mov     $sched_poll, %edi               # no ports and no time limit: only a signal ends it
        lea     poll(%rip), %rsi
        mov     $hypercall_sched_op, %eax
        syscall
        jmp     _start

        .balign 8
poll:   .quad   0, 0, 0
