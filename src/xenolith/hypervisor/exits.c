/* The commonest exits of PV guests, handled natively: what Traps and hypercalls/cpu.py do, where nothing is out of the
 * ordinary. A function here returns true if it has done everything, or false and has changed nothing: then Python handles
 * the exit, which is also what happens where this file was not compiled. hypervisor/native_exits.py has the structures.
 */

#include "machine.h"

#define FLAG_IF (1u << 9)
#define FLAG_IOPL (3u << 12)
#define FLAG_NT (1u << 14)
#define FLAG_VM (1u << 17)
#define FLAG_AC (1u << 18)
#define FLAG_ID (1u << 21)

#define HF_TS (1u << 11)
#define HF_CS32 (1u << 4)
#define HF_SS32 (1u << 5)
#define HF_CS64 (1u << 15)
#define ATTRIBUTE_LONG (1u << 21)
#define ATTRIBUTE_BIG (1u << 22)
#define CR0_TS (1u << 3)

#define XEN_SS 0xE02B
#define XEN_CS64 0xE033
#define FLAT_CODE64 0x00AFFB000000FFFFull
#define FLAT_DATA 0x00CFF3000000FFFFull
#define IN_LDT 4

#define UPCALL_PENDING 0
#define UPCALL_MASK 1
#define INFO_CR2 16

#define ENOENT 2

#define NO_DEVICE 7
#define GENERAL_PROTECTION 13
#define PAGE_FAULT 14
#define PF_PRESENT_WRITE 3
#define PF_USER 4
#define ASSIST_WRITABLE_PAGETABLES 2
#define ASSIST_ARCHITECTURAL_IOPL 4
#define IN_SYSCALL (1u << 8)

#define HYPERCALL_MMU_UPDATE 1
#define HYPERCALL_STACK_SWITCH 3
#define HYPERCALL_FPU_TASKSWITCH 5
#define HYPERCALL_MULTICALL 13
#define HYPERCALL_UPDATE_VA_MAPPING 14
#define HYPERCALL_IRET 23
#define HYPERCALL_VCPU_OP 24
#define HYPERCALL_SET_SEGMENT_BASE 25
#define HYPERCALL_MMUEXT_OP 26
#define SEGBASE_FS 0
#define SEGBASE_GS_USER 1
#define SEGBASE_GS_KERNEL 2
#define CALLBACK_SYSCALL 2

#define MOST_CALLS 1024
#define CLI 0xFA
#define STI 0xFB

/* Sizes and offsets, which native_exits.py compares with its own. */
const uint32_t xenolith_layout[] = {
    sizeof(struct machine), sizeof(struct vcpu), sizeof(struct domain), sizeof(struct gate), sizeof(struct callback),
    sizeof(struct processor), offsetof(struct machine, current), offsetof(struct machine, hypercall_counts), offsetof(struct machine, reschedule),
    offsetof(struct vcpu, info_maddr), offsetof(struct vcpu, kernel_mode), offsetof(struct vcpu, callbacks),
    offsetof(struct vcpu, hypercalls), offsetof(struct vcpu, traps), offsetof(struct domain, vcpus),
};

/* The same of the processor, which the engine compares. */
const uint32_t xenolith_state_layout[] = {
    offsetof(struct cpu_state, eflags), offsetof(struct cpu_state, cc_src), offsetof(struct cpu_state, cc_op),
    offsetof(struct cpu_state, df), offsetof(struct cpu_state, hflags), offsetof(struct cpu_state, segments),
    offsetof(struct cpu_state, ldt), offsetof(struct cpu_state, gdt), offsetof(struct cpu_state, cr),
};

static const char sources[] __attribute__((used)) = SOURCES;

const char *xenolith_sources(void)
{
    return sources;
}

/* -- the processor ------------------------------------------------------------------------------------------------------ */

static void load_segment(struct cpu_state *s, int number, uint32_t selector, uint64_t descriptor, bool with_base)
{
    uint32_t limit = (uint32_t)((descriptor & 0xFFFF) | (descriptor >> 32 & 0xF0000));
    uint32_t attributes = (uint32_t)(descriptor >> 32) & 0x00F0FF00;
    struct segment *segment = &s->segments[number];
    segment->selector = selector;
    segment->base = with_base ? (descriptor >> 16 & 0xFFFFFF) | (descriptor >> 56 & 0xFF) << 24 : 0;
    segment->limit = descriptor >> 55 & 1 ? limit << 12 | 0xFFF : limit;
    segment->attributes = attributes;
    if (number == CS) {
        uint32_t mode = attributes & (ATTRIBUTE_LONG | ATTRIBUTE_BIG) ? HF_CS32 : 0;
        mode |= attributes & ATTRIBUTE_LONG ? HF_CS64 : 0;
        s->hflags = (s->hflags & ~(HF_CS64 | HF_CS32)) | mode;
    } else if (number == SS) {
        s->hflags = (s->hflags & ~HF_SS32) | (attributes & ATTRIBUTE_BIG ? HF_SS32 : 0);
    }
}

static uint32_t selector(const struct cpu_state *s, int number)
{
    return s->segments[number].selector & 0xFFFF;
}

/* The descriptor that a GDT selector names, 0 where there is none. All of a vCPU's GDT is mapped, also where it is empty. */
static uint64_t descriptor(const struct machine *m, const struct vcpu *v, uint32_t selector)
{
    uint64_t vaddr = m->processor.state->gdt.base + (selector & 0xFFF8);
    uint64_t maddr = translate(m, v->kernel_root, vaddr, PRESENT);
    return maddr == NOWHERE ? 0 : word(m, maddr);
}

static bool is_code(uint64_t descriptor)
{
    return (descriptor >> 40 & 0xF8) == 0xF8;
}

static bool is_writable_data(uint64_t descriptor)
{
    return (descriptor >> 40 & 0xFA) == 0xF2;
}

/* -- modes --------------------------------------------------------------------------------------------------------------- */

/* No breakpoint, no single step, nothing to do before the guest goes on. */
static bool is_ordinary(const struct machine *m, const struct vcpu *v)
{
    const struct processor *p = &m->processor;
    return !m->reschedule && !v->nmi_pending && !(p->debug[7] & 0xFF) && !(p->state->eflags & p->uncommon_flags);
}

static uint8_t *info_of(const struct machine *m, const struct vcpu *v)
{
    return m->ram + v->info_maddr;
}

/* An event waits that will be delivered once the mask is `mask`. */
static bool event_follows(const uint8_t *info, uint8_t mask)
{
    return info[UPCALL_PENDING] && !mask;
}

void load_root(struct machine *m, uint64_t root)
{
    *m->epoch += 1;
    *m->processor.root = root;
    m->processor.set_root(m->processor.state, root);
}

static void toggle_mode(struct machine *m, struct vcpu *v)
{
    struct cpu_state *s = m->processor.state;
    uint64_t base = s->segments[GS].base;
    s->segments[GS].base = v->other_gs_base;
    v->other_gs_base = base;
    v->kernel_mode = !v->kernel_mode;
    uint64_t root = v->kernel_mode ? v->kernel_root : v->user_root;
    if (m->processor.change_mode(s, root, v->kernel_mode))
        *m->processor.root = root;
    else
        load_root(m, root);
}

/* What of the interrupted code goes into the frame on the kernel's stack. */
struct interrupted {
    uint64_t rcx, r11, rip, flags;
    uint32_t code, stack;
    bool has_error;
    uint64_t error;
};

/* Traps.bounce: enter the guest's kernel at `address` with a frame on its stack. */
static bool bounce(struct machine *m, struct vcpu *v, uint64_t address, bool masks_events, const struct interrupted *from)
{
    struct cpu_state *s = m->processor.state;
    uint8_t *info = info_of(m, v);
    uint8_t masked = info[UPCALL_MASK];
    if (!address || event_follows(info, masks_events ? 1 : masked))
        return false;
    uint64_t old_rsp = s->regs[RSP], saved = from->flags & ~(uint64_t)(FLAG_IF | FLAG_IOPL);
    if (!masked)
        saved |= FLAG_IF;
    saved |= v->shown_iopl;
    uint32_t code = v->kernel_mode ? from->code & ~3u : from->code;
    uint64_t frame[8], *top = frame;
    *top++ = from->rcx;
    *top++ = from->r11;
    if (from->has_error)
        *top++ = from->error;
    *top++ = from->rip;
    *top++ = code | (uint64_t)masked << 32;
    *top++ = saved;
    *top++ = old_rsp;
    *top++ = from->stack;
    size_t size = (size_t)(top - frame) * 8;
    uint64_t sp = ((v->kernel_mode ? old_rsp : v->kernel_sp) & ~15ull) - size;
    uint64_t maddr = within_page(sp, size) ? walk(m, v->kernel_root, sp, WRITABLE) : NOWHERE;
    if (maddr == NOWHERE || m->frame_flags[maddr >> 12] & FRAME_EXECUTABLE || maddr >> 12 == v->info_maddr >> 12)
        return false;
    if (!v->kernel_mode)
        toggle_mode(m, v);
    memcpy(m->ram + maddr, frame, size);
    if (masks_events)
        info[UPCALL_MASK] = 1;
    s->regs[RSP] = sp;
    s->rip = address;
    set_flags(s, (from->flags & ~(uint64_t)(FLAG_AC | FLAG_VM | FLAG_RF | FLAG_NT | FLAG_TF | FLAG_IOPL)) | FLAG_IF);
    if (selector(s, CS) != XEN_CS64)
        load_segment(s, CS, XEN_CS64, FLAT_CODE64, false);
    if (selector(s, SS) != XEN_SS)
        load_segment(s, SS, XEN_SS, FLAT_DATA, false);
    return true;
}

/* -- system calls ------------------------------------------------------------------------------------------------------- */

/* Traps._user_syscall. RIP is at the instruction still, and must be so again when this is done. */
static bool user_syscall(struct machine *m, struct vcpu *v)
{
    struct cpu_state *s = m->processor.state;
    const struct callback *callback = &v->callbacks[CALLBACK_SYSCALL];
    uint32_t code = selector(s, CS);
    if (code != XEN_CS64 && (code & IN_LDT || !(descriptor(m, v, code) >> 53 & 1)))
        return false;
    uint64_t flags = flags_of(&m->processor), next = s->rip + SYSCALL_LENGTH;
    struct interrupted from = {
        .rcx = next, .r11 = flags | FLAG_IF, .rip = next, .flags = flags, .code = XEN_CS64, .stack = XEN_SS,
    };
    if (!bounce(m, v, callback->address, callback->masks_events, &from))
        return false;
    s->regs[RCX] = from.rcx;
    s->regs[R11] = from.r11;
    s->rip -= SYSCALL_LENGTH;
    return true;
}

/* struct iret_context (public/arch-x86/xen-x86_64.h) */
struct iret_frame {
    uint64_t rax, r11, rcx, how, rip, code, flags, rsp, stack;
};

/* Traps.iret, to a place where no event waits. */
static bool iret(struct machine *m, struct vcpu *v)
{
    struct cpu_state *s = m->processor.state;
    uint8_t *info = info_of(m, v);
    struct iret_frame frame;
    uint64_t rsp = s->regs[RSP], code_descriptor = FLAT_CODE64, stack_descriptor = FLAT_DATA;
    if (rsp & 7 || !within_page(rsp, sizeof frame))
        return false;
    uint64_t maddr = walk(m, v->kernel_root, rsp, PRESENT);
    if (maddr == NOWHERE)
        return false;
    memcpy(&frame, m->ram + maddr, sizeof frame);
    bool to_user = (frame.code & 3) == 3;
    uint32_t code = (frame.code & 0xFFFF) | 3, stack = (frame.stack & 0xFFFF) | 3;
    uint8_t mask = frame.flags & FLAG_IF ? 0 : 1;
    if ((to_user && !v->user_root) || frame.flags & m->processor.uncommon_flags || event_follows(info, mask))
        return false;
    if (code != XEN_CS64 || selector(s, CS) != code) {
        if (code & IN_LDT || !is_code(code_descriptor = descriptor(m, v, code)))
            return false;
    }
    if (stack != selector(s, SS) && stack != 3) {
        if (stack & IN_LDT || !is_writable_data(stack_descriptor = descriptor(m, v, stack)))
            return false;
    }
    if (to_user)
        toggle_mode(m, v);
    info[UPCALL_MASK] = mask;
    v->upcall_streak = 0;
    s->regs[RAX] = frame.rax;
    if (!(frame.how & IN_SYSCALL)) {
        s->regs[R11] = frame.r11;
        s->regs[RCX] = frame.rcx;
    }
    s->rip = frame.rip - SYSCALL_LENGTH;
    s->regs[RSP] = frame.rsp;
    set_flags(s, (frame.flags & (FLAGS_ARITHMETIC | FLAG_DF | FLAG_NT | FLAG_RF | FLAG_AC | FLAG_ID)) | FLAG_FIXED | FLAG_IF);
    if (code != XEN_CS64 || selector(s, CS) != code)
        load_segment(s, CS, code, code_descriptor, false);
    if (stack != selector(s, SS))
        load_segment(s, SS, stack, stack_descriptor, true);
    return true;
}

static bool is_canonical(uint64_t address)
{
    return address < CANONICAL_LOW_END || address >= HYPERVISOR_START;
}

static bool set_segment_base(struct machine *m, struct vcpu *v, uint32_t which, uint64_t base)
{
    struct cpu_state *s = m->processor.state;
    if (!is_canonical(base))
        return false;
    if (which == SEGBASE_FS)
        s->segments[FS].base = base;
    else if (which == SEGBASE_GS_USER)
        v->other_gs_base = base;
    else if (which == SEGBASE_GS_KERNEL)
        s->segments[GS].base = base;
    else
        return false;
    return true;
}

static void fpu_taskswitch(struct cpu_state *s, bool set)
{
    if (set) {
        s->cr[0] |= CR0_TS;
        s->hflags |= HF_TS;
    } else {
        s->cr[0] &= ~(uint64_t)CR0_TS;
        s->hflags &= ~HF_TS;
    }
}

static void note_hypercall(struct machine *m, struct vcpu *v, const uint64_t call[5])
{
    m->hypercall_counts[call[0]] += 1;
    memcpy(v->hypercalls.calls[v->hypercalls.made++ % 16], call, 5 * sizeof call[0]);
}

/* A hypercall whose result is 0, made directly or in a multicall. */
static bool simple_call(struct machine *m, struct vcpu *v, uint64_t number, const uint64_t arguments[4])
{
    const uint64_t *a = arguments;
    switch (number) {
    case HYPERCALL_SET_SEGMENT_BASE:
        return set_segment_base(m, v, (uint32_t)a[0], a[1]);
    case HYPERCALL_STACK_SWITCH:
        v->kernel_ss = (a[0] & 0xFFFF) | 3;
        v->kernel_sp = a[1];
        return true;
    case HYPERCALL_FPU_TASKSWITCH:
        fpu_taskswitch(m->processor.state, (uint32_t)a[0] != 0);
        return true;
    case HYPERCALL_MMU_UPDATE:
        return mmu_update(m, v, a[0], (uint32_t)a[1], a[2], (uint32_t)a[3]);
    case HYPERCALL_MMUEXT_OP:
        return mmuext_op(m, v, a[0], (uint32_t)a[1], a[2], (uint32_t)a[3]);
    case HYPERCALL_UPDATE_VA_MAPPING:
        return update_va_mapping(m, v, a[0], a[1], a[2]);
    default:
        return false;
    }
}

/* struct multicall_entry (public/xen.h) */
struct entry {
    uint64_t number, result, arguments[6];
};

/* Makes the first of `count` calls of a list as long as they are simple ones. Returns how many. */
static uint32_t multicall(struct machine *m, struct vcpu *v, uint64_t calls, uint32_t count)
{
    struct entry entry;
    uint32_t done = 0;
    for (; done < count; done++, calls += sizeof entry) {
        uint64_t maddr = calls & 7 || !within_page(calls, sizeof entry) ? NOWHERE : keep_mapped(m, v, calls);
        if (maddr == NOWHERE || m->frame_flags[maddr >> 12] & FRAME_EXECUTABLE || maddr >> 12 == v->info_maddr >> 12)
            break;
        memcpy(&entry, m->ram + maddr, sizeof entry);
        if (!simple_call(m, v, entry.number, entry.arguments))
            break;
        m->hypercall_counts[entry.number] += 1;
        memset(m->ram + maddr + offsetof(struct entry, result), 0, 8);
    }
    keep_mapped(m, v, 0);
    return done;
}

/* What is left of a multicall is Python's, as if the first part had been a call of its own. */
static void leave_rest(struct machine *m, uint32_t done)
{
    struct cpu_state *s = m->processor.state;
    m->processor.rest = (struct rest){.calls = s->regs[RDI], .count = s->regs[RSI]};
    s->regs[RDI] += done * sizeof(struct entry);
    s->regs[RSI] = (uint32_t)s->regs[RSI] - done;
}

/* Linux asks for thousands of vCPUs whether they are there. */
static bool is_for_nobody(const struct vcpu *v, const uint64_t call[5])
{
    return call[0] == HYPERCALL_VCPU_OP && v->domain->vcpus && (uint32_t)call[2] >= v->domain->vcpus;
}

static bool hypercall(struct machine *m, struct vcpu *v)
{
    struct cpu_state *s = m->processor.state;
    const uint64_t *regs = s->regs;
    const uint64_t call[5] = {regs[RAX], regs[RDI], regs[RSI], regs[RDX], regs[R10]};
    const uint8_t *info = info_of(m, v);
    bool done = false;
    if (m->traced)
        return false;
    if (is_for_nobody(v, call) && !event_follows(info, info[UPCALL_MASK])) {
        s->regs[RAX] = -(uint64_t)ENOENT;
        done = true;
    } else if (call[0] == HYPERCALL_IRET) {
        done = iret(m, v);
    } else if (!event_follows(info, info[UPCALL_MASK])) {
        if (call[0] == HYPERCALL_MULTICALL && (uint32_t)call[2] <= MOST_CALLS) {
            uint32_t made = multicall(m, v, call[1], (uint32_t)call[2]);
            done = made == (uint32_t)call[2];
            if (made && !done)
                leave_rest(m, made);
        } else {
            done = simple_call(m, v, call[0], &call[1]);
        }
        if (done)
            s->regs[RAX] = 0;
    }
    if (done)
        note_hypercall(m, v, call);
    return done;
}

/* SYSCALL. Returns whether Python has nothing to do. */
bool xenolith_syscall_done(struct machine *m)
{
    struct vcpu *v = m->current;
    return v && is_ordinary(m, v) && (v->kernel_mode ? hypercall(m, v) : user_syscall(m, v));
}

/* The engine's hook for SYSCALL. */
void xenolith_syscall(void *uc, struct machine *m)
{
    (void)uc;
    if (!xenolith_syscall_done(m))
        m->processor.syscall();
}

/* -- exceptions --------------------------------------------------------------------------------------------------------- */

/* Whether a fault on `address` is a write to a page table, and perhaps one to be carried out. */
static bool is_table_write(const struct machine *m, const struct vcpu *v, uint64_t error, uint64_t address)
{
    if ((error & PF_PRESENT_WRITE) != PF_PRESENT_WRITE || !v->kernel_mode)
        return false;
    uint64_t maddr = walk(m, v->kernel_root, address, PRESENT);
    return maddr != NOWHERE && m->frame_types[maddr >> 12] == TYPE_L1 && m->frame_type_counts[maddr >> 12];
}

/* Traps._page_fault and inject_page_fault, for what is the guest's own. */
static bool page_fault(struct machine *m, struct vcpu *v, struct interrupted *from)
{
    uint64_t address = m->processor.state->cr[2];
    uint32_t error = (uint32_t)*m->processor.error_code;
    if (!is_guest_address(address))
        return false;
    if (is_table_write(m, v, error, address))
        return v->domain->vm_assist >> ASSIST_WRITABLE_PAGETABLES & 1 && table_write(m, v, address);
    from->has_error = true;
    from->error = v->kernel_mode ? error & ~(uint32_t)PF_USER : error | PF_USER;
    if (!bounce(m, v, v->traps[PAGE_FAULT].address, v->traps[PAGE_FAULT].masks_events, from))
        return false;
    memcpy(info_of(m, v) + INFO_CR2, &address, 8);
    return true;
}

static bool no_device(struct machine *m, struct vcpu *v, const struct interrupted *from)
{
    if (!bounce(m, v, v->traps[NO_DEVICE].address, v->traps[NO_DEVICE].masks_events, from))
        return false;
    fpu_taskswitch(m->processor.state, false);
    return true;
}

/* emulate.privileged, for CLI and STI, which do nothing: a guest's events are masked elsewhere. */
static bool interrupt_flag(struct machine *m, struct vcpu *v)
{
    struct cpu_state *s = m->processor.state;
    const uint8_t *info = info_of(m, v);
    uint8_t least = v->kernel_mode ? !(v->domain->vm_assist >> ASSIST_ARCHITECTURAL_IOPL & 1) : 3;
    uint64_t code = walk(m, v->kernel_mode ? v->kernel_root : v->user_root, s->rip, PRESENT);
    if (*m->processor.error_code || v->iopl < least || code == NOWHERE || event_follows(info, info[UPCALL_MASK]))
        return false;
    if (m->ram[code] != CLI && m->ram[code] != STI)
        return false;
    s->rip += 1;
    return true;
}

/* An exception. Returns whether Python has nothing to do. */
bool xenolith_exception_done(struct machine *m, uint32_t vector)
{
    struct vcpu *v = m->current;
    struct cpu_state *s = m->processor.state;
    if (!v || *m->processor.is_software || !is_ordinary(m, v))
        return false;
    if (vector == GENERAL_PROTECTION)
        return interrupt_flag(m, v);
    if (vector != PAGE_FAULT && vector != NO_DEVICE)
        return false;
    struct interrupted from = {
        .rcx = s->regs[RCX], .r11 = s->regs[R11], .rip = s->rip, .flags = flags_of(&m->processor),
        .code = selector(s, CS), .stack = selector(s, SS),
    };
    return vector == PAGE_FAULT ? page_fault(m, v, &from) : no_device(m, v, &from);
}

/* The engine's hook for exceptions. */
void xenolith_exception(void *uc, uint32_t vector, struct machine *m)
{
    if (xenolith_exception_done(m, vector))
        *m->processor.old_exception = -1;
    else
        m->processor.exception(uc, vector);
}
