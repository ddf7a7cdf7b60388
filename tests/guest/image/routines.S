# What the observer can have the guest do besides hypercalls. Arguments as in C: rdi, rsi, rdx, rcx; the result in rax.

        .text
        .globl  peek, poke, nothing, spin, jump
peek:   mov     (%rdi), %rax
        ret
poke:   mov     %rsi, (%rdi)
        xor     %eax, %eax
        ret
nothing:
        mov     $42, %eax
        ret
spin:   incq    (%rdi)
        jmp     spin
jump:   jmp     *%rdi
