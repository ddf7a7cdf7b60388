/* What native code sees of the Unicorn engine's processor. cpu/unicorn.py verifies the layout and fills the structure in. */

#ifndef XENOLITH_PROCESSOR_H
#define XENOLITH_PROCESSOR_H

#include <stdint.h>

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
    void *processor;                    /* the library's CPUState */
    void (*flush)(void *processor);
    void (*flush_page)(void *processor, uint64_t vaddr);
    void (*syscall)(void);              /* the engine's own hooks, */
    void (*exception)(void *, uint32_t);/* for everything that native code leaves alone */
};

#endif
