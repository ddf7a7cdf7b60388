/* Functions of the Unicorn library that are done better here.
 *
 * The library asks for its own functions by name, as every shared library does, and takes the first that it finds. This
 * one is loaded before it, and so has its versions used; only with the one build of the library whose structures they
 * know (replacements.py). An engine that was not handed over by `xenolith_take_engine` keeps the library's own.
 */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <emmintrin.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "processor.h"

#define PAGE_MASK (~(uint64_t)0xFFF)
#define TLBS 3
#define VICTIMS 8

/* -- the library's structures ------------------------------------------------------------------------------------------- */

/* CPUTLBEntry: virtual addresses of a page, or -1, with flags where an access cannot go directly to memory. */
struct entry {
    uint64_t read, write, code, physical, addend, padding[3];
};

#define NOT_DIRTY 0x400     /* a first write is to be seen */
#define NOT_DIRECT 0xE40    /* that, or no memory, or nothing at all */

/* CPUIOTLBEntry: what is added to a virtual address to have the address within the library's memory (`ram_addr_t`). */
struct io_entry {
    uint64_t offset, attributes;
};

/* CPUTLBDesc */
struct tlb {
    uint64_t large_address, large_mask;
    int64_t window_begin;
    uint64_t window_entries, used, victim;
    struct entry victims[VICTIMS];
    struct io_entry victims_io[VICTIMS];
    struct io_entry *io;
};

/* CPUTLBDescFast: `mask` is the number of entries less one, in units of an entry's size. */
struct tlb_fast {
    uint64_t mask;
    struct entry *entries;
};

/* What lies just before struct cpu_state (CPUNegativeOffsetState). */
struct before_state {
    uint64_t dirty, flushes[3]; /* a bit for each TLB that is not empty */
    struct tlb tlbs[TLBS];
    uint64_t alignment;
    struct tlb_fast fast[TLBS];
    int32_t exit_request, padding[3];
};

/* Offsets in CPUState, in uc_struct and in TCGContext */
#define CPU_STATE 0x8A50
#define UC_CPU 0x1B8
#define UC_CONTEXT 0x300
#define CONTEXT_UC 0x9970
#define CONTEXT_EPILOGUE 0x98
#define CONTEXT_INVALIDATED 0xD8
#define CONTEXT_STATE 0x98F0

static void *at(void *structure, size_t offset)
{
    return (char *)structure + offset;
}

static void *pointer_at(void *structure, size_t offset)
{
    return *(void **)at(structure, offset);
}

static struct before_state *before(struct cpu_state *state)
{
    return (struct before_state *)state - 1;
}

/* -- engines ------------------------------------------------------------------------------------------------------------ */

/* Where a block of translated code begins; what is not known has `flags` that no processor has. */
struct jump {
    uint64_t pc;
    uint32_t flags;
    uint32_t offset;    /* from the end of the library's own code */
};

#define JUMPS 4096
#define MOST_FRAMES (1ull << 24)    /* of which it is known whether they hold code: 64 GiB */

struct engine {
    struct engine *next;
    struct cpu_state *state;
    void *cpu;
    char *no_code;              /* the library's answer where no block is known */
    const size_t *invalidated;  /* how many blocks have become invalid */
    size_t seen_invalidated;
    uint64_t other_root;        /* whose translations OTHER_TLB has */
    bool is_clean;
    struct jump jumps[JUMPS];
    uint8_t code[MOST_FRAMES / 8];
};

static struct engine *engines;

static struct engine *engine_of(struct cpu_state *state)
{
    struct engine *engine = engines;
    while (engine && engine->state != state)
        engine = engine->next;
    return engine;
}

static struct engine *engine_of_cpu(void *cpu)
{
    return engine_of(at(cpu, CPU_STATE));
}

static struct engine *engine_of_uc(void *uc)
{
    return engine_of_cpu(pointer_at(uc, UC_CPU));
}

/* -- the library's functions -------------------------------------------------------------------------------------------- */

static struct {
    void *(*lookup)(struct cpu_state *);
    void (*flush)(void *, uint16_t);
    void (*flush_jumps)(void *, uint64_t);
    void (*flush_code)(void *);
    void (*set_dirty)(void *, uint64_t);
    void (*reset_dirty)(void *, uint64_t, uint64_t);
    void (*translate)(void *, void *, int);
    void (*generate_call)(void *, void *, void *, int, void *);
    void (*generate_exit)(void *, void *, unsigned);
    void (*generate1)(void *, int, uintptr_t);
    void (*generate3)(void *, int, uintptr_t, uintptr_t, uintptr_t);
    void *(*new_temporary)(void *, int, bool);
    void (*free_temporary)(void *, void *);
    void *(*new_label)(void *);
    void (*generate_branch)(void *, int, uintptr_t, int32_t, void *);
    void *check_exit;
    void (*flush_all)(void *);
} library;

static const struct {
    const char *name;
    size_t place;
} functions[] = {
#define FUNCTION(field, name) {name "_x86_64", offsetof(__typeof__(library), field)}
    FUNCTION(lookup, "helper_lookup_tb_ptr"),
    FUNCTION(flush, "tlb_flush_by_mmuidx"),
    FUNCTION(flush_jumps, "tb_flush_jmp_cache"),
    FUNCTION(flush_code, "tb_flush"),
    FUNCTION(set_dirty, "tlb_set_dirty"),
    FUNCTION(reset_dirty, "tlb_reset_dirty_by_vaddr"),
    FUNCTION(translate, "gen_intermediate_code"),
    FUNCTION(generate_call, "tcg_gen_callN"),
    FUNCTION(generate_exit, "tcg_gen_exit_tb"),
    FUNCTION(generate1, "tcg_gen_op1"),
    FUNCTION(generate3, "tcg_gen_op3"),
    FUNCTION(new_temporary, "tcg_temp_new_internal"),
    FUNCTION(free_temporary, "tcg_temp_free_internal"),
    FUNCTION(new_label, "gen_new_label"),
    FUNCTION(generate_branch, "tcg_gen_brcondi_i32"),
    FUNCTION(check_exit, "helper_check_exit_request"),
    FUNCTION(flush_all, "tlb_flush"),
};

static const char sources[] __attribute__((used)) = SOURCES;

const char *xenolith_sources(void)
{
    return sources;
}

/* To be called before anything else in the library is used, whose `handle` (dlopen) this is. */
void xenolith_find_functions(void *handle)
{
    for (size_t i = 0; i < sizeof functions / sizeof functions[0]; i++) {
        void *function = dlsym(handle, functions[i].name);
        memcpy(at(&library, functions[i].place), &function, sizeof function);
    }
}

static void forget_jumps(struct engine *engine);

/* Use the functions here for an engine (uc_struct) from now on. Returns whether the library does. */
bool xenolith_take_engine(void *uc)
{
    void *context = pointer_at(uc, UC_CONTEXT), *cpu = pointer_at(uc, UC_CPU);
    struct engine *engine = calloc(1, sizeof *engine);
    if (!engine)
        return false;
    engine->state = at(cpu, CPU_STATE);
    engine->cpu = cpu;
    engine->no_code = pointer_at(context, CONTEXT_EPILOGUE);
    engine->invalidated = at(context, CONTEXT_INVALIDATED);
    engine->next = engines;
    engines = engine;
    library.flush_all(cpu);
    if (!engine->is_clean) { /* it was loaded before, and has its own functions */
        engines = engine->next;
        free(engine);
        return false;
    }
    return true;
}

/* -- where jumps go ----------------------------------------------------------------------------------------------------- */

#define FLAGS_OF_BLOCKS 0x73100u    /* what of EFLAGS translated code depends on */

static void forget_jumps(struct engine *engine)
{
    if (!engine->is_clean)
        memset(engine->jumps, 0xFF, sizeof engine->jumps);
    engine->is_clean = true;
    engine->seen_invalidated = *engine->invalidated;
}

static __attribute__((noinline)) void *look_up(struct engine *engine, struct cpu_state *state, struct jump *jump, uint32_t flags)
{
    char *code = library.lookup(state);
    if (code != engine->no_code) {
        *jump = (struct jump){state->rip, flags, (uint32_t)(code - engine->no_code)};
        engine->is_clean = false;
    }
    return code;
}

static __attribute__((noinline)) void *look_up_otherwise(struct cpu_state *state)
{
    struct engine *engine = engine_of(state);
    if (engine)
        forget_jumps(engine);
    return library.lookup(state);
}

/* The code to go on with: all that is needed of a block lies together, in one line of the host's cache. */
void *helper_lookup_tb_ptr_x86_64(struct cpu_state *state)
{
    struct engine *engine = engines;
    if (!engine || engine->state != state || state->segments[CS].base || engine->seen_invalidated != *engine->invalidated)
        return look_up_otherwise(state);
    uint64_t pc = state->rip;
    uint32_t flags = state->hflags | ((uint32_t)state->eflags & FLAGS_OF_BLOCKS);
    struct jump *jump = &engine->jumps[(pc ^ pc >> 12) % JUMPS];
    if (jump->pc == pc && jump->flags == flags)
        return engine->no_code + jump->offset;
    return look_up(engine, state, jump, flags);
}

void tlb_flush_by_mmuidx_x86_64(void *cpu, uint16_t tlbs)
{
    struct engine *engine = engine_of_cpu(cpu);
    if (engine)
        forget_jumps(engine);
    library.flush(cpu, tlbs);
}

void tb_flush_jmp_cache_x86_64(void *cpu, uint64_t address)
{
    struct engine *engine = engine_of_cpu(cpu);
    if (engine)
        forget_jumps(engine);
    library.flush_jumps(cpu, address);
}

void tb_flush_x86_64(void *cpu)
{
    struct engine *engine = engine_of_cpu(cpu);
    if (engine) {
        forget_jumps(engine);
        memset(engine->code, 0, sizeof engine->code);
    }
    library.flush_code(cpu);
}

/* -- a guest's two modes ------------------------------------------------------------------------------------------------ */

/* All guests' code uses the library's TLB for CPL 3. While a guest is in one mode, the translations of its other mode are
 * in the TLB that the library has for SMAP, and so never uses; whatever flushes one flushes the other. A third one has what
 * an instruction like IRET looks up by itself, and is emptied. As code at the same address may be another one in the other
 * mode, it gets a flag of its own, which the library has not. */
#define OTHER_TLB 0             /* MMU_KSMAP_IDX */
#define GUEST_TLB 1             /* MMU_USER_IDX */
#define SYSTEM_TLB 2            /* MMU_KNOSMAP_IDX */
#define KERNEL_MODE (1u << 30)

/* Use the L4 table at `root`, of the guest's other mode, with its translations. False if there are none: then the caller
 * loads it. */
bool xenolith_change_mode(struct cpu_state *state, uint64_t root, bool kernel_mode)
{
    struct engine *engine = engine_of(state);
    struct before_state *b = before(state);
    if (!engine)
        return false;
    state->hflags = kernel_mode ? state->hflags | KERNEL_MODE : state->hflags & ~KERNEL_MODE;
    bool is_known = engine->other_root == root;
    engine->other_root = state->cr[3];
    if (!is_known)
        return false;
    if (b->dirty & 1 << SYSTEM_TLB)
        library.flush(engine->cpu, 1 << SYSTEM_TLB);
    struct tlb tlb = b->tlbs[GUEST_TLB];
    struct tlb_fast fast = b->fast[GUEST_TLB];
    b->tlbs[GUEST_TLB] = b->tlbs[OTHER_TLB];
    b->fast[GUEST_TLB] = b->fast[OTHER_TLB];
    b->tlbs[OTHER_TLB] = tlb;
    b->fast[OTHER_TLB] = fast;
    b->dirty |= 1 << GUEST_TLB | 1 << OTHER_TLB;
    state->cr[3] = root;
    return true;
}

/* -- writes to code ----------------------------------------------------------------------------------------------------- */

/* The library has the first write to each page seen, and no further one where the page is not to be executed. Here
 * further ones are seen if the page holds code, through whatever mapping it is written to. */

static bool holds_code(const struct engine *engine, uint64_t ram_address)
{
    uint64_t frame = ram_address >> 12;
    return frame >= MOST_FRAMES || engine->code[frame / 8] >> frame % 8 & 1;
}

static void watch(struct entry *entry, const struct io_entry *io, uint64_t ram_address)
{
    if (!(entry->write & NOT_DIRECT) && ((io->offset + entry->write) & PAGE_MASK) == ram_address)
        entry->write |= NOT_DIRTY;
}

/* A page gets its first code. */
void tlb_protect_code_x86_64(void *uc, uint64_t ram_address)
{
    struct engine *engine = engine_of_uc(uc);
    uint64_t frame = ram_address >> 12;
    if (!engine)
        return;
    if (frame < MOST_FRAMES)
        engine->code[frame / 8] |= 1 << frame % 8;
    ram_address &= PAGE_MASK;
    for (int i = 0; i < TLBS; i++) {
        struct tlb *tlb = &before(engine->state)->tlbs[i];
        struct tlb_fast *fast = &before(engine->state)->fast[i];
        for (uint64_t n = 0; n <= fast->mask / sizeof(struct entry); n++)
            watch(&fast->entries[n], &tlb->io[n], ram_address);
        for (int n = 0; n < VICTIMS; n++)
            watch(&tlb->victims[n], &tlb->victims_io[n], ram_address);
    }
}

/* A page has lost its last code. */
void tlb_unprotect_code_x86_64(void *uc, uint64_t ram_address)
{
    struct engine *engine = engine_of_uc(uc);
    uint64_t frame = ram_address >> 12;
    if (engine && frame < MOST_FRAMES)
        engine->code[frame / 8] &= ~(1 << frame % 8);
}

static void unwatch(const struct engine *engine, struct entry *entry, const struct io_entry *io, uint64_t vaddr)
{
    if (entry->write == (vaddr | NOT_DIRTY) && !holds_code(engine, io->offset + vaddr))
        entry->write = vaddr;
}

/* A page has been written to. */
void tlb_set_dirty_x86_64(void *cpu, uint64_t vaddr)
{
    struct engine *engine = engine_of_cpu(cpu);
    if (!engine) {
        library.set_dirty(cpu, vaddr);
        return;
    }
    vaddr &= PAGE_MASK;
    for (int i = 0; i < TLBS; i++) {
        struct tlb *tlb = &before(engine->state)->tlbs[i];
        struct tlb_fast *fast = &before(engine->state)->fast[i];
        uint64_t n = vaddr >> 12 & fast->mask / sizeof(struct entry);
        unwatch(engine, &fast->entries[n], &tlb->io[n], vaddr);
        for (int n = 0; n < VICTIMS; n++)
            unwatch(engine, &tlb->victims[n], &tlb->victims_io[n], vaddr);
    }
}

/* Code was translated: the library makes up here for what it does not know of pages. */
void tlb_reset_dirty_by_vaddr_x86_64(void *cpu, uint64_t start, uint64_t length)
{
    if (!engine_of_cpu(cpu))
        library.reset_dirty(cpu, start, length);
}

/* -- whether to stop ---------------------------------------------------------------------------------------------------- */

/* Each block begins with the question whether to stop. Where the library calls a function, the block asks itself here,
 * and ends as QEMU's do, from which the library comes: with an exit of its own. */

enum { SET_LABEL = 1, LOAD32 = 13 };    /* INDEX_op_set_label, INDEX_op_ld_i32 */
#define LESS 2                          /* TCG_COND_LT */
#define EXIT_REQUESTED 3                /* TB_EXIT_REQUESTED */

static _Thread_local void *stop_label; /* of the block that is being translated */

void gen_intermediate_code_x86_64(void *cpu, void *block, int most_instructions)
{
    stop_label = NULL;
    library.translate(cpu, block, most_instructions);
}

void tcg_gen_callN_x86_64(void *context, void *function, void *result, int count, void *arguments)
{
    if (function != library.check_exit || stop_label || !engine_of_uc(pointer_at(context, CONTEXT_UC))) {
        library.generate_call(context, function, result, count, arguments);
        return;
    }
    char *state = at(context, (size_t)pointer_at(context, CONTEXT_STATE));
    void *asked = library.new_temporary(context, 0, false);
    stop_label = library.new_label(context);
    intptr_t place = (intptr_t)offsetof(struct before_state, exit_request) - (intptr_t)sizeof(struct before_state);
    library.generate3(context, LOAD32, (uintptr_t)asked, (uintptr_t)state, (uintptr_t)place);
    library.generate_branch(context, LESS, (uintptr_t)asked - (uintptr_t)context, 0, stop_label);
    library.free_temporary(context, asked);
}

void tcg_gen_exit_tb_x86_64(void *context, void *block, unsigned number)
{
    if (number == EXIT_REQUESTED && stop_label) {
        *(uint32_t *)stop_label |= 1; /* TCGLabel.present */
        library.generate1(context, SET_LABEL, (uintptr_t)stop_label);
        stop_label = NULL;
    }
    library.generate_exit(context, block, number);
}

/* -- vectors ------------------------------------------------------------------------------------------------------------ */

/* Registers are stored in halves of 64 bits, and the counts of shifts in halves of 32 bits, mostly just before they are
 * used here. What loads more than was stored at once (as compilers do, if they may) waits until it has got to the cache. */

static inline __m128i load(const volatile int64_t vector[2])
{
    int64_t low = vector[0], high = vector[1];
    return _mm_set_epi64x(high, low);
}

static inline void store(volatile int64_t vector[2], __m128i value)
{
    vector[0] = _mm_cvtsi128_si64(value);
    vector[1] = _mm_cvtsi128_si64(_mm_unpackhi_epi64(value, value));
}

#define SHIFT(name, operation) \
    void helper_##name##_xmm_x86_64(struct cpu_state *state, int64_t vector[2], const volatile uint32_t count[2]) \
    { \
        (void)state; \
        uint32_t low = count[0], high = count[1]; \
        store(vector, _mm_##operation(load(vector), _mm_cvtsi64_si128((int64_t)((uint64_t)high << 32 | low)))); \
    }

#define COMBINE(name, operation) \
    void helper_##name##_xmm_x86_64(struct cpu_state *state, int64_t vector[2], const int64_t other[2]) \
    { \
        (void)state; \
        store(vector, _mm_##operation(load(vector), load(other))); \
    }

SHIFT(psllw, sll_epi16)
SHIFT(pslld, sll_epi32)
SHIFT(psllq, sll_epi64)
SHIFT(psrlw, srl_epi16)
SHIFT(psrld, srl_epi32)
SHIFT(psrlq, srl_epi64)
SHIFT(psraw, sra_epi16)
SHIFT(psrad, sra_epi32)
COMBINE(pand, and_si128)
COMBINE(pandn, andnot_si128)
COMBINE(por, or_si128)
COMBINE(pxor, xor_si128)
COMBINE(paddl, add_epi32)
COMBINE(paddq, add_epi64)
