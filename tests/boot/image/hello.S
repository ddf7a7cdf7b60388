# A small paravirtual guest: it prints its command line on its console, and then does what the first letter of that says.
#
#   s  spin for ever        c  execute an undefined instruction     r  ask for a reboot
#   w  wait for ever        anything else: power off
#
# With the symbol `legacy` it is made as kernels were before there were notes: a __xen_guest section, addresses from 0,
# and hypercalls through the page that the hypervisor fills in. Else it has notes, lies where kernels lie, and uses syscall.
# Numbers are Xen's public interface: xen/include/public/{xen.h,elfnote.h,vcpu.h,sched.h,event_channel.h,io/console.h}.

        .set    m2p, 0xffff800000000000
        .set    hypercall_vcpu_op, 24
        .set    hypercall_sched_op, 29
        .set    hypercall_event_channel_op, 32
        .set    stop_periodic_timer, 7
        .set    sched_yield, 0
        .set    sched_shutdown, 2
        .set    sched_poll, 3
        .set    shutdown_poweroff, 0
        .set    shutdown_reboot, 1
        .set    event_channel_send, 4

        .set    start_info_console_mfn, 72
        .set    start_info_console_port, 80
        .set    start_info_cmd_line, 128
        .set    ring_out, 1024
        .set    ring_out_mask, 2047
        .set    ring_out_consumed, 3080
        .set    ring_out_produced, 3084

        .include "notes.S"

        .ifdef  legacy
        .set    virt_base, 0
        .section __xen_guest, "", @progbits
        .ascii  "GUEST_OS=hello,XEN_VER=xen-3.0,VIRT_BASE=0x0,ELF_PADDR_OFFSET=0x0,HYPERCALL_PAGE=0x2,LOADER=generic"
        .byte   0
        .else
        .set    virt_base, 0xffffffff80000000
        xen_notes hello
        .endif

        .macro  hypercall number
        .ifdef  legacy
        call    hypercall_page + \number * 32
        .else
        mov     $\number, %eax
        syscall
        .endif
        .endm

        .text
        .globl  _start
_start:
        # Entered with the start_info page in rsi. The console page lies in the boot mapping, at its pseudo-physical number.
        mov     %rsi, %r13
        movabs  $m2p, %rax
        mov     start_info_console_mfn(%r13), %rbx
        mov     (%rax, %rbx, 8), %rbx
        shl     $12, %rbx
        add     $virt_base, %rbx

        lea     greeting(%rip), %rsi
        call    print
        lea     start_info_cmd_line(%r13), %rsi
        call    print
        lea     newline(%rip), %rsi
        call    print

drain:  mov     ring_out_consumed(%rbx), %eax
        cmp     ring_out_produced(%rbx), %eax
        je      obey
        mov     $sched_yield, %edi
        xor     %esi, %esi
        hypercall hypercall_sched_op
        jmp     drain

obey:   mov     start_info_cmd_line(%r13), %al
        cmp     $'s', %al
        je      spin
        cmp     $'w', %al
        je      wait
        cmp     $'c', %al
        je      crash
        push    $shutdown_reboot
        cmp     $'r', %al
        je      1f
        movq    $shutdown_poweroff, (%rsp)
1:      mov     $sched_shutdown, %edi
        mov     %rsp, %rsi
        hypercall hypercall_sched_op

        .globl  crash
crash:  ud2

spin:   jmp     spin

wait:   mov     $stop_periodic_timer, %edi
        xor     %esi, %esi
        xor     %edx, %edx
        hypercall hypercall_vcpu_op
        push    $0                              # struct sched_poll: no time limit,
        push    $0                              # and no ports,
        push    $0                              # which lie nowhere
1:      mov     $sched_poll, %edi
        mov     %rsp, %rsi
        hypercall hypercall_sched_op
        jmp     1b

# Puts the text at rsi into the ring, up to its NUL, and tells the other end.
print:  mov     ring_out_produced(%rbx), %edx
1:      lodsb
        test    %al, %al
        jz      2f
        mov     %edx, %edi
        and     $ring_out_mask, %edi
        mov     %al, ring_out(%rbx, %rdi)
        inc     %edx
        jmp     1b
2:      mov     %edx, ring_out_produced(%rbx)
        push    start_info_console_port(%r13)
        mov     $event_channel_send, %edi
        mov     %rsp, %rsi
        hypercall hypercall_event_channel_op
        pop     %rax
        ret

greeting:
        .asciz  "Hello, "
newline:
        .asciz  "\r\n"

        .ifdef  legacy
        .balign 4096
        .globl  hypercall_page
hypercall_page:
        .fill   4096, 1, 0xcc
        .endif
