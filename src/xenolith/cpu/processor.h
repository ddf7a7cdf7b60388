/* What native code sees of an engine's processor: it is laid out as in Unicorn's library. cpu/unicorn.py verifies that,
 * and cpu/kvm_loop.c has one for each processor of KVM's; they fill the structure in.
 */

#ifndef XENOLITH_PROCESSOR_H
#define XENOLITH_PROCESSOR_H

#include <stdbool.h>
#include <stdint.h>

#define FLAGS_ARITHMETIC 0x8D5u
#define FLAG_FIXED (1u << 1)
#define FLAG_TF (1u << 8)
#define FLAG_DF (1u << 10)
#define FLAG_RF (1u << 16)
#define CC_OP_EFLAGS 1
#define SYSCALL_LENGTH 2

/* Register numbers, as in cpu/registers.py. */
enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11, R12, R13, R14, R15 };
enum { ES, CS, SS, DS, FS, GS };

struct segment {
    uint32_t selector;
    uint64_t base;
    uint32_t limit;
    uint32_t attributes;
};

/* The beginning of the library's CPUX86State. */
struct cpu_state {
    uint64_t regs[16];
    uint64_t rip;
    uint64_t eflags;
    uint64_t cc_dst;
    uint64_t cc_src;
    uint64_t cc_src2;
    uint32_t cc_op;
    int32_t df;
    uint32_t hflags;
    uint32_t hflags2;
    struct segment segments[6];
    struct segment ldt, tr, gdt, idt;
    uint64_t cr[5];
};

/* Of a multicall of which the handler gets but the rest: RDI and RSI as the guest had them, and has them again. */
struct rest {
    uint64_t calls, count;
};

/* struct Processor in cpu/shortcuts.py. */
struct processor {
    struct cpu_state *state;
    uint64_t *debug;                    /* DR0 to DR7 */
    int32_t *error_code;
    int32_t *is_software;               /* whether the exception is that of an INT n */
    int32_t *old_exception;
    uint64_t *root;                     /* what the engine last loaded into CR3 */
    uint32_t (*arithmetic_flags)(struct cpu_state *, int cc_op);
    void (*set_root)(struct cpu_state *, uint64_t root);
    bool (*change_mode)(struct cpu_state *, uint64_t root, bool kernel_mode); /* false: call set_root instead */
    void *processor;                    /* what the next three are called with */
    void (*flush)(void *processor);
    void (*flush_page)(void *processor, uint64_t vaddr);
    void (*mapping_removed)(void *processor, uint64_t mfn); /* NULL where the engine need not be told */
    void (*syscall)(void);              /* the engine's own hooks, */
    void (*exception)(void *, uint32_t);/* for everything that native code leaves alone */
    uint64_t uncommon_flags;            /* an exit with one of them is the engine's */
    struct rest rest;
};

static inline uint64_t flags_of(const struct processor *p)
{
    struct cpu_state *s = p->state;
    uint64_t arithmetic = s->cc_op == CC_OP_EFLAGS ? s->cc_src : p->arithmetic_flags(s, (int)s->cc_op);
    return (s->eflags & ~(uint64_t)(FLAGS_ARITHMETIC | FLAG_DF)) | arithmetic | FLAG_FIXED | (s->df == 1 ? 0 : FLAG_DF);
}

static inline void set_flags(struct cpu_state *s, uint64_t flags)
{
    s->eflags = (flags & ~(uint64_t)(FLAGS_ARITHMETIC | FLAG_DF)) | FLAG_FIXED;
    s->cc_src = flags & FLAGS_ARITHMETIC;
    s->cc_op = CC_OP_EFLAGS;
    s->df = flags & FLAG_DF ? -1 : 1;
}

#endif
