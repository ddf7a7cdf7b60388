# What the observer can have the guest do besides hypercalls. Arguments as in C: rdi, rsi, rdx, rcx; the result in rax.

        .macro  routine name
        .globl  \name
\name:
        .endm

        .macro  hit_breakpoints                 # rdi times; on to 2 if one was not noticed
        mov     %rdi, %rbx
        xor     %ebp, %ebp
1:      mov     %rbp, %r8
        int3
        inc     %r8
        cmp     %r8, %rbp
        jne     2f
        dec     %rbx
        jnz     1b
        .endm

        .text
        routine nothing
        mov     $42, %eax
        ret
        routine peek
        mov     (%rdi), %rax
        ret
        routine poke
        mov     %rsi, (%rdi)
        xor     %eax, %eax
        ret
        routine spin
        incq    (%rdi)
        jmp     spin
        routine count_by_two                    # what stands there is never a present entry
        addq    $2, (%rdi)
        jmp     count_by_two
        routine take_turns                      # with another vCPU, which waits for the other parity
1:      mov     (%rdi), %rax
        and     $1, %eax
        cmp     %rsi, %rax
        jne     1b
        incq    (%rdi)
        jmp     1b
        routine scribble                        # two values by turns
1:      mov     %rsi, (%rdi)
        jmp     2f                              # emulators stop at jumps only
2:      mov     %rdx, (%rdi)
        jmp     1b
        routine call_later                      # after so many rounds: hypercall rsi(rdx, rcx, r8, r9)
        dec     %rdi
        jnz     call_later
        mov     %rsi, %rax
        mov     %rdx, %rdi
        mov     %rcx, %rsi
        mov     %r8, %rdx
        mov     %r9, %r10
        syscall
        ret
        routine jump
        jmp     *%rdi

# Instructions that fault, or that the hypervisor emulates.
        routine divide_by_zero
        xor     %ecx, %ecx
        div     %ecx
        ret
        routine undefined
        ud2
        routine breakpoint
        int3
        ret
        routine interrupt_128
        int     $0x80
        ret
        routine interrupt_129
        int     $0x81
        ret
        routine interrupt_14
        int     $14
        ret
        routine cli_sti
        cli
        sti
        mov     $1, %eax
        ret
        routine halt
        hlt
        ret
        routine port_in
        mov     %edi, %edx
        in      %dx, %al
        ret
        routine port_out
        mov     %edi, %edx
        out     %al, %dx
        ret
        routine read_cr0
        mov     %cr0, %rax
        ret
        routine read_cr3
        mov     %cr3, %rax
        ret
        routine write_cr0
        mov     %rdi, %cr0
        ret
        routine write_cr3
        mov     %rdi, %cr3
        ret
        routine write_cr4
        mov     %rdi, %cr4
        ret
        routine write_cr8
        mov     %rdi, %cr8
        ret
        routine load_gdt
        lgdt    (%rdi)
        ret
        routine load_idt
        lidt    (%rdi)
        ret
        routine load_task
        mov     %edi, %eax
        ltr     %ax
        ret
        routine invalidate_page
        invlpg  (%rdi)
        ret
        routine swap_gs
        swapgs
        ret
        routine system_return
        mov     %rdi, %rcx
        sysretq
        routine read_msr
        mov     %edi, %ecx
        rdmsr
        shl     $32, %rdx
        or      %rdx, %rax
        ret
        routine write_msr
        mov     %edi, %ecx
        mov     %esi, %eax
        mov     %rsi, %rdx
        shr     $32, %rdx
        wrmsr
        ret
        routine enter_by_sysenter
        sysenter
        ret
        routine fpu
        fninit
        mov     $1, %eax
        ret

# Segments.
        routine load_fs
        mov     %edi, %fs
        mov     %fs, %eax
        ret
        routine load_ss
        mov     %edi, %ss
        mov     %ss, %eax
        ret
        routine far_call
        push    %rsi
        push    %rdi
        rex.w lcall *(%rsp)
        ret

# Control: single steps, stacks, frames.
        routine single_step
        pushf
        orq     $0x100, (%rsp)
        popf
        nop
        nop
        ret
        routine fault_with_stack
        mov     %rdi, %rsp
        ud2
        routine raw_iret                        # (frame)
        mov     %rdi, %rsp
        mov     $23, %eax
        syscall
        routine wait_for_event                  # until an upcall has come, with events open
        mov     step_0+step_events(%rip), %rbx
1:      mov     $1, %edi                        # SCHEDOP_block
        xor     %esi, %esi
        mov     $29, %eax
        syscall
        cmp     step_0+step_events(%rip), %rbx
        je      1b
        movb    $1, shared_info+1(%rip)
        ret
        routine spin_until_event                # with events open and no hypercall at all
        mov     step_0+step_events(%rip), %rbx
        movb    $0, shared_info+1(%rip)
1:      cmp     step_0+step_events(%rip), %rbx
        je      1b
        movb    $1, shared_info+1(%rip)
        ret
        routine read_time                       # system time by the clock record of vCPU 0
1:      mov     shared_info+32(%rip), %ecx
        test    $1, %cl
        jnz     1b
        rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        sub     shared_info+40(%rip), %rax
        mov     shared_info+60(%rip), %cl
        test    %cl, %cl
        js      2f
        shl     %cl, %rax
        jmp     3f
2:      neg     %cl
        shr     %cl, %rax
3:
        mov     shared_info+56(%rip), %edx
        mul     %rdx
        shrd    $32, %rdx, %rax
        add     shared_info+48(%rip), %rax
        ret
        routine events_on
        movb    $0, shared_info+1(%rip)
        mov     $17, %eax                       # xen_version, so that what is pending is delivered
        xor     %edi, %edi
        syscall
        ret
        routine events_off
        movb    $1, shared_info+1(%rip)
        ret
        routine fault_again                     # a handler that raises what it handles
        ud2
        routine fault_for_ever
        lea     stack_top_0(%rip), %rsp
        ud2
        routine hypercall_for_ever
1:      mov     $17, %eax
        xor     %edi, %edi
        xor     %esi, %esi
        syscall
        incq    playground(%rip)
        jmp     1b

# Stores to page tables that are mapped read-only: (address, value, ...).
        routine store_xchg
        xchg    %rsi, (%rdi)
        mov     %rsi, %rax
        ret
        routine store_cmpxchg                   # (address, new, expected)
        mov     %rdx, %rax
        lock cmpxchg %rsi, (%rdi)
        ret
        routine store_and
        lock and %rsi, (%rdi)
        ret
        routine store_or
        lock or %rsi, (%rdi)
        ret
        routine store_bts                       # (address, bit); carry in rax
        xor     %eax, %eax
        lock bts %esi, (%rdi)
        setc    %al
        ret
        routine store_btr
        xor     %eax, %eax
        lock btr %esi, (%rdi)
        setc    %al
        ret
        routine store_long
        mov     %esi, (%rdi)
        ret
        routine store_byte
        mov     %sil, (%rdi)
        ret
        routine store_add
        add     %rsi, (%rdi)
        ret
        routine store_string
        mov     %rsi, %rax
        stosq
        mov     %rdi, %rax
        ret
        routine store_pair                      # cmpxchg16b (address, expected low, expected high, new low), new high = r8
        push    %rbx
        mov     %rsi, %rax
        mov     %rcx, %rbx
        mov     %r8, %rcx
        lock cmpxchg16b (%rdi)
        pop     %rbx
        setz    %al
        movzbl  %al, %eax
        ret
        routine store_vector
        movaps  %xmm0, (%rdi)
        ret

# Code that writes code: (code, alias of the code, new immediate). The code is `mov imm32, %eax; ret`.
        routine rewrite_through_alias
        push    %rbx
        mov     %rdi, %rbx
        mov     %rsi, %r12
        mov     %rdx, %r13
        call    *%rbx
        mov     %r13d, 1(%r12)
        call    *%rbx
        pop     %rbx
        ret
        routine rewrite_and_call_hypervisor
        push    %rbx
        mov     %rdi, %rbx
        mov     %rsi, %r12
        mov     %rdx, %r13
        call    *%rbx
        mov     %r13d, 1(%r12)
        mov     $17, %eax
        xor     %edi, %edi
        syscall
        call    *%rbx
        pop     %rbx
        ret
        routine jump_as_if_called               # (place, flags): go there as SYSCALL would; the flags afterwards
        mov     %rsi, %r11
        lea     1f(%rip), %rcx
        mov     $17, %eax                       # xen_version
        mov     %rdi, %rdx
        xor     %edi, %edi
        jmp     *%rdx
1:      pushf
        pop     %rax
        ret
        routine broken                          # the same in the kernel
        push    %rbx
        push    %rbp
        hit_breakpoints
        pop     %rbp
        pop     %rbx
        ret
2:      ud2

# User mode: mapped at its own address in the user's page tables.
        .balign 4096
        routine user_text
        routine user_syscall
        mov     %rdi, %rax
        syscall
        ud2
        routine user_peek
        mov     (%rdi), %rax
        syscall
        routine user_poke
        mov     %rsi, (%rdi)
        syscall
        routine user_hypercall                  # a hypercall, as the kernel would make it
        mov     %rdi, %rax
        mov     %rsi, %rdi
        mov     %rdx, %rsi
        syscall
        routine user_interrupt_128
        int     $0x80
        syscall
        routine user_interrupt_129
        int     $0x81
        syscall
        routine user_interrupt_14
        int     $14
        syscall
        routine user_breakpoint
        int3
        syscall
        routine user_undefined
        ud2
        routine user_divide_by_zero
        xor     %ecx, %ecx
        div     %ecx
        routine user_cli
        cli
        syscall
        routine user_halt
        hlt
        syscall
        routine user_port_in
        mov     %edi, %edx
        in      %dx, %al
        syscall
        routine user_port_out
        mov     %edi, %edx
        out     %al, %dx
        syscall
        routine user_read_cr3
        mov     %cr3, %rax
        syscall
        routine user_write_cr3
        mov     %rdi, %cr3
        syscall
        routine user_read_msr
        mov     %edi, %ecx
        rdmsr
        syscall
        routine user_load_gdt
        lgdt    (%rsp)
        syscall
        routine user_swap_gs
        swapgs
        syscall
        routine user_sysenter
        sysenter
        syscall
        routine user_jump
        jmp     *%rdi
        routine user_fpu
        fninit
        syscall
        routine user_single_step
        pushf
        orq     $0x100, (%rsp)
        popf
        nop
        nop
        syscall
        routine user_spin
        jmp     user_spin
        routine user_flags                      # (-, flags): a system call with them
        push    %rsi
        popf
        syscall
        routine user_report                     # (-, place): RCX, R11, RAX and the flags go there
        mov     %rcx, (%rsi)
        mov     %r11, 8(%rsi)
        mov     %rax, 16(%rsi)
        pushf
        pop     24(%rsi)
        mov     $1, %eax
        syscall
        routine user_broken                     # (rounds): breakpoints, all of which are noticed
        hit_breakpoints
        mov     $1, %eax
        syscall
2:      ud2
        routine user_served                     # (rounds, no memory, answer, word at GS): calls and faults, see serve_call
        mov     %rdi, %rbx
        mov     %rcx, %r9
        movabs  $0x1122334455667788, %r12
        mov     %r12, %r13
        mov     %rdx, %r8
1:      mov     $7, %eax
        mov     %rbx, %rdi
        mov     %r12, %rdx
        mov     %r12, %r10
        syscall
        cmp     %r8, %rax
        jne     2f
        cmp     %gs:0, %r9
        jne     2f
        mov     %r13, %rcx
        mov     %rbx, %r11
        mov     %rbx, %rax
        stc
        mov     (%rsi), %rax
        jnc     2f
        cmp     %rbx, %rax
        jne     2f
        cmp     %rbx, %rdi
        jne     2f
        cmp     %rbx, %r11
        jne     2f
        cmp     %r13, %rcx
        jne     2f
        cmp     %r13, %rdx
        jne     2f
        cmp     %r13, %r10
        jne     2f
        dec     %rbx
        jnz     1b
        syscall
2:      ud2
        .balign 4096
