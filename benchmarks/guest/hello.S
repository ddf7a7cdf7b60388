# A smallest paravirtual guest: writes a line to its console ring, waits until it was read, and powers off.
#
# Numbers are Xen's public interface: xen/include/public/{xen.h,elfnote.h,sched.h,event_channel.h,io/console.h}.

        .set    virt_base, 0xffffffff80000000
        .set    m2p, 0xffff800000000000

        .set    hypercall_sched_op, 29
        .set    hypercall_event_channel_op, 32
        .set    sched_yield, 0
        .set    sched_shutdown, 2
        .set    event_channel_send, 4

        .set    start_info_console_mfn, 72
        .set    start_info_console_port, 80
        .set    ring_out, 1024
        .set    ring_out_mask, 2047
        .set    ring_out_consumed, 3080
        .set    ring_out_produced, 3084

        .include "notes.S"
        xen_notes hello

        .text
        .globl  _start
_start:
        # Entered with the start_info page in rsi. The console page lies in the boot mapping, at its pseudo-physical number.
        movabs  $m2p, %rax
        mov     start_info_console_mfn(%rsi), %rbx
        mov     (%rax, %rbx, 8), %rbx
        shl     $12, %rbx
        add     $virt_base, %rbx
        mov     start_info_console_port(%rsi), %r12d

        lea     message(%rip), %rsi
        mov     ring_out_produced(%rbx), %edx
        mov     $message_bytes, %ecx
copy:   lodsb
        mov     %edx, %edi
        and     $ring_out_mask, %edi
        mov     %al, ring_out(%rbx, %rdi)
        inc     %edx
        loop    copy
        mov     %edx, ring_out_produced(%rbx)

        push    %r12
        mov     $event_channel_send, %edi
        mov     %rsp, %rsi
        call    event_channel_op

drain:  mov     ring_out_consumed(%rbx), %eax
        cmp     ring_out_produced(%rbx), %eax
        je      done
        mov     $sched_yield, %edi
        xor     %esi, %esi
        call    sched_op
        jmp     drain

done:   push    $0                              # SHUTDOWN_poweroff
        mov     $sched_shutdown, %edi
        mov     %rsp, %rsi
        call    sched_op
        ud2

event_channel_op:
        mov     $hypercall_event_channel_op, %eax
        syscall
        ret
sched_op:
        mov     $hypercall_sched_op, %eax
        syscall
        ret

message:
        .ascii  "Hello, world\r\n"
        .set    message_bytes, . - message
