# A PV guest that does what its observer asks, one step at a time, and says what came of it.
#
# Each vCPU has a page with one step in it: the observer fills it in, sets its state to "go" and wakes the vCPU; the guest
# carries it out, notes the result or the exception that it raised, and waits again in SCHEDOP_poll.
# Numbers are Xen's public interface: xen/include/public/{xen.h,elfnote.h,sched.h,arch-x86/xen-x86_64.h}.

        .set    virt_base, 0xffffffff80000000
        .set    call_set_trap_table, 0
        .set    call_stack_switch, 3
        .set    call_set_callbacks, 4
        .set    call_update_va_mapping, 14
        .set    call_iret, 23
        .set    call_sched_op, 29
        .set    sched_shutdown, 2
        .set    sched_poll, 3
        .set    start_info_shared_info, 40      # machine address
        .set    user_cs, 0xe033
        .set    user_ss, 0xe02b

# The step: what to do ...
        .set    step_state, 0                   # 0 none, 1 go, 2 done
        .set    step_kind, 8
        .set    step_target, 16                 # a hypercall's number, or an address
        .set    step_arguments, 24              # six
# ... and what came of it.
        .set    step_result, 72                 # rax
        .set    step_vector, 80                 # the exception, vector_none, or vector_syscall for a user's system call
        .set    step_error, 88
        .set    step_rip, 96
        .set    step_cs, 104
        .set    step_rflags, 112
        .set    step_rsp, 120
        .set    step_events, 128                # event upcalls so far, in any step
        .set    step_user_rsp, 136
        .set    go, 1
        .set    done, 2
        .set    kind_hypercall, 1
        .set    kind_call, 2
        .set    kind_user, 3
        .set    vector_none, -1
        .set    vector_syscall, 256
        .set    in_syscall, 0x100               # of an iret: RCX and R11 stay as they are

        .include "notes.S"

        .macro  hypercall number
        mov     $\number, %eax
        syscall
        .endm

        xen_notes test

        .text
        .globl  _start
_start:
        lea     stack_top_0(%rip), %rsp
        mov     %rsi, %rbx                      # start_info
        lea     shared_info(%rip), %rdi
        mov     start_info_shared_info(%rbx), %rsi
        or      $0x63, %rsi
        mov     $2, %edx                        # UVMF_INVLPG
        hypercall call_update_va_mapping
        lea     trap_table_0(%rip), %rdi
        hypercall call_set_trap_table
        lea     upcall_0(%rip), %rdi
        lea     failsafe_0(%rip), %rsi
        lea     user_syscall_0(%rip), %rdx
        hypercall call_set_callbacks
        mov     $user_ss, %edi
        lea     stack_top_0(%rip), %rsi
        hypercall call_stack_switch
        jmp     loop_0

        .macro  trap_entry cpu, vector, has_error
trap_\vector\()_\cpu:
        movq    $\vector, step_\cpu\()+step_vector(%rip)
        .if     \has_error
        pop     %rcx
        pop     %r11
        pop     step_\cpu\()+step_error(%rip)
        .else
        pop     %rcx
        pop     %r11
        movq    $0, step_\cpu\()+step_error(%rip)
        .endif
        jmp     faulted_\cpu
        .endm

        .macro  trap_record cpu, vector, dpl=0
        .byte   \vector, \dpl
        .word   user_cs
        .long   0
        .quad   trap_\vector\()_\cpu
        .endm

        .macro  processor cpu, info
loop_\cpu:
        lea     stack_top_\cpu(%rip), %rsp
        cmpq    $go, step_\cpu\()+step_state(%rip)
        je      1f
        mov     $sched_poll, %edi
        lea     poll(%rip), %rsi
        hypercall call_sched_op
        jmp     loop_\cpu
1:      lea     step_\cpu(%rip), %r15
        movq    $vector_none, step_vector(%r15)
        mov     step_target(%r15), %rax
        mov     step_arguments(%r15), %rdi
        mov     step_arguments+8(%r15), %rsi
        mov     step_arguments+16(%r15), %rdx
        mov     step_arguments+24(%r15), %r10
        mov     step_arguments+32(%r15), %r8
        mov     step_arguments+40(%r15), %r9
        mov     %r10, %rcx
        cmpq    $kind_user, step_kind(%r15)
        je      3f
        cmpq    $kind_call, step_kind(%r15)
        je      2f
        syscall
        jmp     finished_\cpu
2:      call    *%rax
        jmp     finished_\cpu
3:      push    $user_ss
        push    step_user_rsp(%r15)
        push    $0x202
        push    $user_cs
        push    %rax
        push    $0                              # flags
        push    %rcx
        push    $0                              # r11
        push    $0                              # rax
        hypercall call_iret

faulted_\cpu:
        pop     step_\cpu\()+step_rip(%rip)
        pop     step_\cpu\()+step_cs(%rip)
        pop     step_\cpu\()+step_rflags(%rip)
        pop     step_\cpu\()+step_rsp(%rip)
finished_\cpu:
        mov     %rax, step_\cpu\()+step_result(%rip)
        movq    $done, step_\cpu\()+step_state(%rip)
        cld
        jmp     loop_\cpu

user_syscall_\cpu:
        movq    $vector_syscall, step_\cpu\()+step_vector(%rip)
        pop     %rcx
        pop     %r11
        jmp     faulted_\cpu

# A kernel that serves its user mode, which may go on: system call 7 is answered by 8 and the first word at GS, and an
# access to memory that is not there, of three bytes, is left out.
serve_call_\cpu:
        cmp     $7, %rax
        jne     user_syscall_\cpu
        mov     %gs:0, %rax
        add     $8, %rax
        pop     %rcx
        pop     %r11
        push    $in_syscall
        push    %rcx
        push    %r11
        push    %rax
        hypercall call_iret
serve_break_\cpu:                       # a breakpoint, counted in RBP
        inc     %rbp
        pop     %rcx
        pop     %r11
        push    $0
        push    %rcx
        push    %r11
        push    %rax
        hypercall call_iret
serve_fault_\cpu:
        pop     %rcx
        pop     %r11
        add     $8, %rsp
        addq    $3, (%rsp)
        push    $0
        push    %rcx
        push    %r11
        push    %rax
        hypercall call_iret

failsafe_\cpu:
        movq    $257, step_\cpu\()+step_vector(%rip)
        mov     %rax, step_\cpu\()+step_result(%rip)
        movq    $done, step_\cpu\()+step_state(%rip)
        jmp     loop_\cpu

upcall_\cpu:
        movb    $0, shared_info+\info(%rip)     # evtchn_upcall_pending
        incq    step_\cpu\()+step_events(%rip)
        pop     %rcx
        pop     %r11
        push    $0                              # flags
        push    %rcx
        push    %r11
        push    %rax
        hypercall call_iret

        trap_entry \cpu, 0, 0
        trap_entry \cpu, 1, 0
        trap_entry \cpu, 3, 0
        trap_entry \cpu, 4, 0
        trap_entry \cpu, 5, 0
        trap_entry \cpu, 6, 0
        trap_entry \cpu, 7, 0
        trap_entry \cpu, 8, 1
        trap_entry \cpu, 10, 1
        trap_entry \cpu, 11, 1
        trap_entry \cpu, 12, 1
        trap_entry \cpu, 13, 1
        trap_entry \cpu, 14, 1
        trap_entry \cpu, 16, 0
        trap_entry \cpu, 17, 1
        trap_entry \cpu, 18, 0
        trap_entry \cpu, 19, 0
        trap_entry \cpu, 128, 0
        trap_entry \cpu, 129, 0

        .data
        .balign 16
trap_table_\cpu:
        trap_record \cpu, 0
        trap_record \cpu, 1
        trap_record \cpu, 3, 3
        trap_record \cpu, 4, 3
        trap_record \cpu, 5
        trap_record \cpu, 6
        trap_record \cpu, 7
        trap_record \cpu, 8
        trap_record \cpu, 10
        trap_record \cpu, 11
        trap_record \cpu, 12
        trap_record \cpu, 13
        trap_record \cpu, 14
        trap_record \cpu, 16
        trap_record \cpu, 17
        trap_record \cpu, 18
        trap_record \cpu, 19
        trap_record \cpu, 128, 3
        trap_record \cpu, 129, 1
        .quad   0, 0

        .balign 4096
step_\cpu:
        .fill   4096, 1, 0
        .text
        .endm

        processor 0, 0
        processor 1, 64

        .globl  secondary
secondary:
        jmp     loop_1

        .data
        .balign 16
poll:   .quad   0, 0, 0

        .bss
        .balign 4096
        .globl  shared_info
shared_info:
        .skip   4096
        .skip   4096
stack_top_0:
        .skip   4096
stack_top_1:
        .globl  arguments, playground
arguments:
        .skip   4 * 4096
playground:
        .skip   96 * 4096
