/* Runs a virtual processor of KVM's and has its commonest exits handled natively, without Python in between: what
 * cpu/kvm.py does with a processor that runs alone. Whatever is not common, or not handled natively, is left in the page
 * that KVM shares as KVM left it, so that Python finds it there.
 */

#define _DEFAULT_SOURCE /* madvise */

#include <errno.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "processor.h"

#define SYNCHRONISED (KVM_SYNC_X86_REGS | KVM_SYNC_X86_SREGS)
#define CR0_TS (1u << 3)

/* Ports and widths of the engine's own OUTs (kvm_entry.py), and what of exceptions is common. */
#define ENTRY_WIDTH 4
#define ENTRY_SYSCALL 0
#define NO_DEVICE 7
#define GENERAL_PROTECTION 13
#define PAGE_FAULT 14
#define MAY_HAVE (FLAGS_ARITHMETIC | FLAG_DF | 0x250300u) /* RFLAGS of a guest that may have made them up: TF, IF, RF, AC, ID */

/* struct NativeLoop in kvm_loop.py. */
struct kvm_engine {
    struct processor *processor;
    bool (*syscall)(void *context);
    bool (*exception)(void *context, uint32_t vector);
    void *context;
    uint8_t *mirror;                    /* RAM as it is mapped for KVM, */
    uint64_t frames;                    /* and how many frames that is */
    uint64_t own_root;                  /* a root that is no guest's */
    uint8_t shadows_tables;
    uint8_t has_program;                /* for ring 0 */
};

/* struct Words in ring0.py, 40 bytes below the end of the ring-0 stack. */
struct ring0_words {
    uint64_t frame[5];
    uint64_t saved_rsp, saved[5];
    uint64_t scratch[5];
    uint64_t root, gdt;
    uint32_t segments;
    uint8_t stop, undoable, by_fault, is_open;
};

/* struct KvmState in kvm_loop.py. */
struct kvm_cpu {
    struct cpu_state state;             /* the guest's registers, and between exits all its flags in `eflags` */
    struct kvm_segment code, stack;
    struct kvm_engine *engine;
    struct kvm_run *run;
    const uint64_t *stack_end;          /* the ring-0 stack, as we see it, */
    uint64_t stack_top;                 /* and its address there */
    uint64_t entry;                     /* where SYSCALL goes */
    uint64_t root;
    uint64_t exits;
    uint64_t debug[8];
    int32_t error_code;
    int32_t fd;
    uint8_t flush;
};

/* Sizes and offsets, which kvm_loop.py compares with its own. */
const uint32_t xenolith_kvm_layout[] = {
    sizeof(struct kvm_engine), sizeof(struct kvm_cpu), sizeof(struct ring0_words), offsetof(struct ring0_words, root),
    offsetof(struct kvm_cpu, state.eflags),
    offsetof(struct kvm_cpu, code), offsetof(struct kvm_cpu, root), offsetof(struct kvm_cpu, debug),
    offsetof(struct kvm_cpu, flush),
};

/* -- what handlers ask of the processor --------------------------------------------------------------------------------- */

static void flush(void *processor)
{
    ((struct kvm_cpu *)processor)->flush = 1;
}

static void flush_page(void *processor, uint64_t vaddr)
{
    (void)vaddr;
    flush(processor);
}

static void set_root(struct cpu_state *state, uint64_t root)
{
    struct kvm_cpu *c = (struct kvm_cpu *)state;
    c->root = root;
    c->flush = 1;
}

/* KvmEngine.mapping_removed */
static void mapping_removed(void *processor, uint64_t mfn)
{
    const struct kvm_engine *e = ((struct kvm_cpu *)processor)->engine;
    if (mfn < e->frames)
        madvise(e->mirror + (mfn << 12), 4096, MADV_DONTNEED);
}

/* There is one set of translations. */
static bool change_mode(struct cpu_state *state, uint64_t root, bool kernel_mode)
{
    (void)state, (void)root, (void)kernel_mode;
    return false;
}

static void make_current(struct kvm_cpu *c)
{
    struct processor *p = c->engine->processor;
    static int32_t not_software, old_exception;
    p->state = &c->state;
    p->debug = c->debug;
    p->error_code = &c->error_code;
    p->is_software = &not_software;
    p->old_exception = &old_exception;
    p->root = &c->root;
    p->set_root = set_root;
    p->uncommon_flags = FLAG_TF; /* and all faults have RF */
    p->change_mode = change_mode;
    p->processor = c;
    p->flush = flush;
    p->flush_page = flush_page;
    p->mapping_removed = c->engine->shadows_tables ? mapping_removed : NULL;
}

/* -- in and out of the guest -------------------------------------------------------------------------------------------- */

/* The guest's state as handlers see it. Nothing says "loaded" of a segment but its attributes. */
static void leave(struct kvm_cpu *c, uint64_t rip, uint64_t rsp, uint64_t flags)
{
    struct cpu_state *s = &c->state;
    const struct kvm_regs *r = &c->run->s.regs.regs;
    const struct kvm_sregs *sregs = &c->run->s.regs.sregs;
    uint64_t regs[] = {
        r->rax, r->rcx, r->rdx, r->rbx, rsp, r->rbp, r->rsi, r->rdi,
        r->r8, r->r9, r->r10, r->r11, r->r12, r->r13, r->r14, r->r15,
    };
    for (int i = 0; i < 16; i++)
        s->regs[i] = regs[i];
    s->rip = rip;
    set_flags(s, flags);
    s->segments[CS] = (struct segment){.selector = c->code.selector};
    s->segments[SS] = (struct segment){.selector = c->stack.selector};
    s->segments[FS].base = sregs->fs.base;
    s->segments[GS].base = sregs->gs.base;
    s->gdt.base = sregs->gdt.base;
    s->ldt.limit = sregs->ldt.limit;
    s->cr[0] = sregs->cr0;
    s->cr[2] = sregs->cr2;
}

static void load(struct kvm_segment *into, const struct segment *from)
{
    uint32_t a = from->attributes;
    if (!a)
        return;
    *into = (struct kvm_segment){
        .base = from->base, .limit = from->limit, .selector = (uint16_t)from->selector, .type = a >> 8 & 15,
        .present = a >> 15 & 1, .dpl = a >> 13 & 3, .db = a >> 22 & 1, .s = a >> 12 & 1, .l = a >> 21 & 1,
        .g = a >> 23 & 1, .avl = a >> 20 & 1, .unusable = !(a >> 15 & 1),
    };
}

/* What handlers may have changed, but for the general registers. */
static void take_over(struct kvm_cpu *c)
{
    struct cpu_state *s = &c->state;
    struct kvm_sregs *sregs = &c->run->s.regs.sregs;
    s->eflags = flags_of(c->engine->processor);
    load(&c->code, &s->segments[CS]);
    load(&c->stack, &s->segments[SS]);
    sregs->fs.base = s->segments[FS].base;
    sregs->gs.base = s->segments[GS].base;
    sregs->cr0 = (sregs->cr0 & ~(uint64_t)CR0_TS) | (s->cr[0] & CR0_TS);
}

static struct ring0_words *words_of(const struct kvm_cpu *c)
{
    return (struct ring0_words *)(c->stack_end - 5);
}

static uint32_t selectors(const struct kvm_cpu *c)
{
    return c->code.selector | (uint32_t)c->stack.selector << 16;
}

/* KvmCpu.leave: what was changed in ring 0. */
static void follow_ring0(struct kvm_cpu *c)
{
    const struct ring0_words *w = words_of(c);
    c->root = w->root;
    if (w->segments == selectors(c))
        return;
    c->code = (struct kvm_segment){
        .limit = UINT32_MAX, .selector = (uint16_t)w->segments, .type = 11, .present = 1, .dpl = 3, .s = 1, .l = 1, .g = 1,
    };
    c->stack = (struct kvm_segment){
        .limit = UINT32_MAX, .selector = (uint16_t)(w->segments >> 16), .type = 3, .present = 1, .dpl = 3, .db = 1, .s = 1,
        .g = 1,
    };
}

/* KvmCpu.enter */
static void enter(struct kvm_cpu *c)
{
    struct ring0_words *w = words_of(c);
    w->root = c->root;
    w->gdt = c->run->s.regs.sregs.gdt.base;
    w->segments = selectors(c);
    w->stop = w->undoable = w->by_fault = 0;
    w->is_open = !(c->debug[7] & 0xFF);
    const uint64_t *regs = c->state.regs;
    struct kvm_sync_regs *shared = &c->run->s.regs;
    shared->regs = (struct kvm_regs){
        .rax = regs[RAX], .rbx = regs[RBX], .rcx = regs[RCX], .rdx = regs[RDX], .rsi = regs[RSI], .rdi = regs[RDI],
        .rsp = regs[RSP], .rbp = regs[RBP], .r8 = regs[R8], .r9 = regs[R9], .r10 = regs[R10], .r11 = regs[R11],
        .r12 = regs[R12], .r13 = regs[R13], .r14 = regs[R14], .r15 = regs[R15],
        .rip = c->state.rip, .rflags = c->state.eflags,
    };
    shared->sregs.cs = c->code;
    shared->sregs.ss = c->stack;
    c->run->kvm_dirty_regs = SYNCHRONISED;
}

/* KvmEngine._forget_translations. Returns 0, or what KVM says. */
static int forget_translations(struct kvm_cpu *c)
{
    struct kvm_sregs *sregs = &c->run->s.regs.sregs;
    if (c->flush && !c->engine->shadows_tables && sregs->cr3 == c->root) {
        struct kvm_sregs elsewhere = *sregs;
        elsewhere.cr3 = c->engine->own_root;
        if (ioctl(c->fd, KVM_SET_SREGS, &elsewhere) < 0)
            return errno;
    }
    c->flush = 0;
    sregs->cr3 = c->root;
    return 0;
}

/* -- exits -------------------------------------------------------------------------------------------------------------- */

/* Of a list the first part may be done, and the rest Python's: so RDI and RSI are shared at once. */
static bool syscall_done(struct kvm_cpu *c, uint64_t rsp)
{
    struct kvm_regs *r = &c->run->s.regs.regs;
    leave(c, r->rcx - SYSCALL_LENGTH, rsp, r->r11);
    bool done = c->engine->syscall(c->engine->context);
    take_over(c);
    c->state.rip += SYSCALL_LENGTH;
    r->rdi = c->state.regs[RDI];
    r->rsi = c->state.regs[RSI];
    return done;
}

static bool exception_done(struct kvm_cpu *c, uint32_t vector)
{
    const struct kvm_run *run = c->run;
    const uint64_t *frame = c->stack_end - 5;
    bool has_error = vector != NO_DEVICE;
    if (run->s.regs.regs.rsp != c->stack_top - 40 - 8 * has_error)
        return false;
    uint64_t rip = frame[0], code = frame[1], flags = frame[2], rsp = frame[3], stack = frame[4];
    if ((code & 3) != 3)
        return false;
    if (vector == PAGE_FAULT && rip == c->entry) { /* a software KVM enters by SYSCALL without leaving CPL 3, or it was a jump */
        c->run->s.regs.regs.r11 = (c->run->s.regs.regs.r11 & MAY_HAVE) | FLAG_FIXED;
        return syscall_done(c, rsp);
    }
    if (code != c->code.selector || stack != c->stack.selector)
        return false;
    leave(c, rip, rsp, flags);
    c->error_code = has_error ? (int32_t)frame[-1] : 0;
    bool done = c->engine->exception(c->engine->context, vector);
    take_over(c);
    return done;
}

/* Whether all was done that the guest left for. Then its next state is where KVM takes it from. */
bool xenolith_kvm_done(struct kvm_cpu *c)
{
    const struct kvm_run *run = c->run;
    bool done = false;
    make_current(c);
    if (run->exit_reason != KVM_EXIT_IO)
        return false;
    follow_ring0(c);
    if (run->io.size == ENTRY_WIDTH)
        done = run->io.port == ENTRY_SYSCALL
               && syscall_done(c, c->engine->has_program ? words_of(c)->saved_rsp : run->s.regs.regs.rsp);
    else if (run->io.port == PAGE_FAULT || run->io.port == NO_DEVICE || run->io.port == GENERAL_PROTECTION)
        done = exception_done(c, run->io.port);
    if (done)
        enter(c);
    return done;
}

/* Runs until there is something for Python to do. Returns 0, or what KVM says. Kicks end KVM_RUN, or have it end at once. */
int xenolith_kvm_run(struct kvm_cpu *c)
{
    for (;;) {
        if (ioctl(c->fd, KVM_RUN, 0) < 0)
            return errno;
        if (!xenolith_kvm_done(c))
            return 0;
        c->exits++;
        int error = forget_translations(c);
        if (error)
            return error;
    }
}
