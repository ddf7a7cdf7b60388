/* The commonest changes of page tables: what pagetables.py, hypercalls/mmu.py and ptwr.py do, where no table has to be
 * validated, no frame becomes free and nothing has to be forgotten first. As in exits.c, false means: nothing was changed.
 */

#include "machine.h"

#define RW 2
#define USER 4
#define ACCESSED 0x20
#define DIRTY 0x40
#define GLOBAL 0x100
#define CACHE_ATTRIBUTES 0x98
#define GUEST_KERNEL (1ull << 52)
#define NX (1ull << 63)
#define HARMLESS (0xFFF0000000000000ull | 0xE00 | GLOBAL | DIRTY | ACCESSED | USER)

#define DOMID_SELF 0x7FF0
#define NOT_RAM (-2)

#define UPDATE_NORMAL 0
#define UPDATE_PRESERVE_AD 2
#define FLUSH_TYPE 3
#define FLUSH_ALL 1
#define FLUSH_PAGE 2

#define NEW_BASEPTR 5
#define TLB_FLUSH_LOCAL 6
#define INVLPG_LOCAL 7
#define NEW_USER_BASEPTR 15

#define MOST_AT_ONCE 8

static uint64_t frames(const struct machine *m)
{
    return m->ram_size >> 12;
}

static uint64_t mfn_of(uint64_t entry)
{
    return (entry & ADDRESS) >> 12;
}

static bool is_in_use_as(const struct machine *m, uint64_t mfn, int type)
{
    return m->frame_type_counts[mfn] && m->frame_types[mfn] == type;
}

/* -- references --------------------------------------------------------------------------------------------------------- */

/* PageTables.get_l1e, for a frame of the domain's own that can be had as things are. */
static bool may_get(const struct machine *m, const struct domain *d, uint64_t entry)
{
    uint64_t mfn = mfn_of(entry);
    if (entry & CACHE_ATTRIBUTES || mfn >= frames(m) || m->frame_owners[mfn] != d->domid)
        return false;
    if (!(entry & RW) || m->frame_types[mfn] == TYPE_WRITABLE)
        return true;
    return !m->frame_type_counts[mfn] && m->frame_stale_epochs[mfn] != *m->epoch;
}

static void get(struct machine *m, uint64_t entry)
{
    uint64_t mfn = mfn_of(entry);
    m->frame_counts[mfn] += 1;
    if (entry & RW) {
        m->frame_types[mfn] = TYPE_WRITABLE;
        m->frame_type_counts[mfn] += 1;
    }
}

static bool is_memory(const struct machine *m, uint64_t mfn)
{
    return mfn < frames(m) && m->frame_owners[mfn] != NOT_RAM;
}

/* PageTables.put_l1e, for a frame that does not become free. */
static bool may_put(const struct machine *m, uint64_t entry)
{
    uint64_t mfn = mfn_of(entry);
    if (!is_memory(m, mfn))
        return true;
    if (m->frame_counts[mfn] <= 1)
        return false;
    return entry & RW ? is_in_use_as(m, mfn, TYPE_WRITABLE) : m->frame_types[mfn] != TYPE_SEG_DESC;
}

static void put(struct machine *m, uint64_t entry)
{
    uint64_t mfn = mfn_of(entry);
    if (!is_memory(m, mfn))
        return;
    if (entry & RW && !--m->frame_type_counts[mfn])
        m->frame_stale_epochs[mfn] = *m->epoch;
    m->frame_counts[mfn] -= 1;
}

/* -- one entry ---------------------------------------------------------------------------------------------------------- */

/* A change that may be made: `taken` and `dropped` are entries whose references come and go, 0 for none. */
struct change {
    uint64_t maddr, value, taken, dropped, executable;
    uint64_t removed;   /* the entry that was there, if it was present */
};

/* What keep_mapped was told. */
static struct {
    uint64_t vaddr, maddr, l1e;
} kept;

/* PageTables.update_l1 up to where it begins to change anything. */
static bool plan_l1(
    const struct machine *m, const struct domain *d, uint64_t maddr, uint64_t value, bool preserve, struct change *c)
{
    uint64_t old = word(m, maddr), mfn = mfn_of(value);
    if (kept.vaddr && maddr == kept.l1e)
        return false;
    *c = (struct change){.maddr = maddr, .dropped = old & PRESENT ? old : 0, .removed = old & PRESENT ? old : 0};
    if (value & PRESENT) {
        if (!(value & NX)) {
            bool is_kernels = !(value & USER) || value & GUEST_KERNEL;
            bool becomes_code = old & NX || !(old & PRESENT);
            if (mfn >= frames(m) || (becomes_code && is_kernels && m->frame_flags[mfn] & FRAME_EXECUTABLE))
                return false;
            c->executable = value;
        }
        if (!((old ^ value) & ~HARMLESS))
            c->dropped = 0;
        else if (may_get(m, d, value))
            c->taken = value;
        else
            return false;
        if (!(value & USER))
            value |= USER | GUEST_KERNEL;
        else if (!(value & GUEST_KERNEL))
            value |= GLOBAL;
    }
    c->value = preserve ? value | (old & (ACCESSED | DIRTY)) : value;
    return !c->dropped || may_put(m, c->dropped);
}

static void carry_out(struct machine *m, const struct change *c)
{
    if (c->taken)
        get(m, c->taken);
    if (c->executable)
        m->frame_flags[mfn_of(c->executable)] |= FRAME_EXECUTABLE;
    memcpy(m->ram + c->maddr, &c->value, 8);
    if (c->removed && m->processor.mapping_removed)
        m->processor.mapping_removed(m->processor.processor, mfn_of(c->removed));
    if (c->dropped)
        put(m, c->dropped);
}

/* One request of mmu_update: to an L1 table, or to memory that is no table, nor has the vCPU's pending events. */
static bool plan_request(const struct machine *m, const struct vcpu *v, uint64_t pointer, uint64_t value, struct change *c)
{
    uint64_t kind = pointer & 7, maddr = pointer & ~7ull, mfn = maddr >> 12;
    if ((kind != UPDATE_NORMAL && kind != UPDATE_PRESERVE_AD) || mfn >= frames(m))
        return false;
    if (m->frame_owners[mfn] != v->domain->domid || mfn == v->info_maddr >> 12)
        return false;
    if (is_in_use_as(m, mfn, TYPE_L1))
        return plan_l1(m, v->domain, maddr, value, kind == UPDATE_PRESERVE_AD, c);
    *c = (struct change){.maddr = maddr, .value = value};
    return is_in_use_as(m, mfn, TYPE_WRITABLE) && !(m->frame_flags[mfn] & FRAME_EXECUTABLE);
}

/* Whether two changes have nothing to do with each other, so that each may be judged as if it were the only one. */
static bool are_apart(const struct change *a, const struct change *b)
{
    uint64_t ours[] = {a->maddr, a->taken, a->dropped, a->executable};
    uint64_t theirs[] = {b->maddr, b->taken, b->dropped, b->executable};
    for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++)
            if ((i || j) && ours[i] && theirs[j] && mfn_of(ours[i]) == mfn_of(theirs[j]))
                return false;
    return a->maddr != b->maddr;
}

/* -- hypercalls --------------------------------------------------------------------------------------------------------- */

bool mmu_update(struct machine *m, struct vcpu *v, uint64_t requests, uint32_t count, uint64_t done, uint32_t foreign)
{
    struct change changes[MOST_AT_ONCE];
    uint64_t pairs[MOST_AT_ONCE][2];
    if (!count || count > MOST_AT_ONCE || done || foreign != DOMID_SELF)
        return false;
    uint64_t maddr = walk(m, v->kernel_root, requests, PRESENT);
    if (maddr == NOWHERE || requests & 7 || !within_page(requests, 16 * count))
        return false;
    memcpy(pairs, m->ram + maddr, 16 * count);
    for (uint32_t i = 0; i < count; i++) {
        if (!plan_request(m, v, pairs[i][0], pairs[i][1], &changes[i]))
            return false;
        for (uint32_t j = 0; j < i; j++)
            if (!are_apart(&changes[j], &changes[i]))
                return false;
    }
    for (uint32_t i = 0; i < count; i++)
        carry_out(m, &changes[i]);
    return true;
}

static void flush_all(struct machine *m)
{
    *m->epoch += 1;
    m->processor.flush(m->processor.processor);
}

/* GuestMemory.l1e_maddr; NOWHERE where there is no L1 table. */
static uint64_t l1e_maddr(const struct machine *m, uint64_t root, uint64_t vaddr)
{
    uint64_t table = root;
    for (int shift = 39; shift >= 21; shift -= 9) {
        uint64_t entry = word(m, table + (vaddr >> shift & 511) * 8);
        if (!(entry & PRESENT))
            return NOWHERE;
        table = entry & ADDRESS;
    }
    return table < m->ram_size ? table + (vaddr >> 12 & 511) * 8 : NOWHERE;
}

uint64_t keep_mapped(const struct machine *m, const struct vcpu *v, uint64_t vaddr)
{
    kept.vaddr = vaddr;
    kept.maddr = vaddr ? walk(m, v->kernel_root, vaddr, WRITABLE) : NOWHERE;
    kept.l1e = kept.maddr == NOWHERE ? NOWHERE : l1e_maddr(m, v->kernel_root, vaddr);
    return kept.maddr;
}

bool update_va_mapping(struct machine *m, struct vcpu *v, uint64_t vaddr, uint64_t value, uint64_t flags)
{
    struct change change;
    uint64_t maddr = is_guest_address(vaddr) ? l1e_maddr(m, v->kernel_root, vaddr) : NOWHERE;
    if (maddr == NOWHERE || !is_in_use_as(m, maddr >> 12, TYPE_L1))
        return false;
    if (!plan_l1(m, v->domain, maddr, value, false, &change))
        return false;
    carry_out(m, &change);
    if ((flags & FLUSH_TYPE) == FLUSH_PAGE)
        m->processor.flush_page(m->processor.processor, vaddr);
    else if ((flags & FLUSH_TYPE) == FLUSH_ALL)
        flush_all(m);
    return true;
}

/* Whether an L4 table, which is one already, can be a root in the place of `old`, which stays one. */
static bool may_be_root(const struct machine *m, const struct vcpu *v, uint64_t mfn, uint64_t old)
{
    if (mfn >= frames(m) || m->frame_owners[mfn] != v->domain->domid || !is_in_use_as(m, mfn, TYPE_L4))
        return false;
    return !old || (m->frame_counts[old] > 1 && m->frame_type_counts[old] > 1);
}

static void exchange_root(struct machine *m, uint64_t *root, uint64_t mfn)
{
    uint64_t old = *root >> 12;
    m->frame_counts[mfn] += 1;
    m->frame_type_counts[mfn] += 1;
    *root = mfn << 12;
    if (old) {
        m->frame_counts[old] -= 1;
        m->frame_type_counts[old] -= 1;
    }
}

/* struct mmuext_op (public/xen.h) */
struct operation {
    uint32_t command, pad;
    uint64_t arg1, arg2;
};

/* Whether an operation is a simple one. A new root becomes that under which the next operation is read. */
static bool may_do(const struct machine *m, const struct vcpu *v, const struct operation *op, uint64_t *root)
{
    uint64_t mfn = op->arg1;
    switch (op->command) {
    case TLB_FLUSH_LOCAL:
    case INVLPG_LOCAL:
        return true;
    case NEW_BASEPTR:
        *root = mfn << 12;
        return v->kernel_root && mfn && (mfn == v->kernel_root >> 12 || may_be_root(m, v, mfn, v->kernel_root >> 12));
    case NEW_USER_BASEPTR:
        return mfn && (mfn == v->user_root >> 12 || may_be_root(m, v, mfn, v->user_root >> 12));
    default:
        return false;
    }
}

static void do_operation(struct machine *m, struct vcpu *v, const struct operation *op)
{
    switch (op->command) {
    case TLB_FLUSH_LOCAL:
        flush_all(m);
        break;
    case INVLPG_LOCAL:
        if (is_guest_address(op->arg1))
            m->processor.flush_page(m->processor.processor, op->arg1);
        break;
    case NEW_BASEPTR:
        if (op->arg1 != v->kernel_root >> 12)
            exchange_root(m, &v->kernel_root, op->arg1);
        load_root(m, v->kernel_root);
        break;
    case NEW_USER_BASEPTR:
        if (op->arg1 != v->user_root >> 12)
            exchange_root(m, &v->user_root, op->arg1);
        break;
    }
}

bool mmuext_op(struct machine *m, struct vcpu *v, uint64_t operations, uint32_t count, uint64_t done, uint32_t foreign)
{
    struct operation list[MOST_AT_ONCE];
    size_t size = sizeof list[0];
    uint64_t root = v->kernel_root, first = walk(m, root, operations, PRESENT);
    bool has_new[2] = {false, false};
    if (!count || count > MOST_AT_ONCE || done || (foreign & 0xFFFF) != DOMID_SELF)
        return false;
    if (first == NOWHERE || !within_page(operations, size * count) || m->processor.state->ldt.limit || v->kernel_root == v->user_root)
        return false;
    memcpy(list, m->ram + first, size * count);
    for (uint32_t i = 0; i < count; i++) {
        uint32_t command = list[i].command;
        if (walk(m, root, operations + size * i, PRESENT) != first + size * i || !may_do(m, v, &list[i], &root))
            return false;
        if (command == NEW_BASEPTR || command == NEW_USER_BASEPTR) {
            if (has_new[command == NEW_USER_BASEPTR])
                return false;
            has_new[command == NEW_USER_BASEPTR] = true;
        }
    }
    if (kept.vaddr && walk(m, root, kept.vaddr, WRITABLE) != kept.maddr)
        return false;
    for (uint32_t i = 0; i < count; i++)
        do_operation(m, v, &list[i]);
    return true;
}

/* -- writes to tables --------------------------------------------------------------------------------------------------- */

/* What an instruction does to the word or byte that its fault named. */
struct store {
    enum { MOVE, EXCHANGE, AND, OR } kind;
    int size;
    int source;         /* a register, for MOVE and EXCHANGE */
    uint8_t operand;    /* for AND and OR */
    int length;
};

/* The few instructions with which Linux writes to its tables; ptwr.py knows all of them. */
static bool decode(const uint8_t *code, struct store *store)
{
    const uint8_t *at = code;
    uint8_t rex = 0;
    bool locked = *at == 0xF0;
    if (locked)
        at++;
    if ((*at & 0xF0) == 0x40)
        rex = *at++;
    uint8_t opcode = *at++, modrm = *at++;
    int mod = modrm >> 6, reg = modrm >> 3 & 7, rm = modrm & 7;
    if (mod == 3)
        return false;
    if (rm == 4) {
        uint8_t sib = *at++;
        if (mod == 0 && (sib & 7) == 5)
            at += 4;
    } else if (mod == 0 && rm == 5) {
        at += 4;
    }
    at += mod == 1 ? 1 : mod == 2 ? 4 : 0;
    *store = (struct store){.size = 8, .source = reg | (rex & 4) << 1};
    if (rex & 8 && opcode == 0x89 && !locked)
        store->kind = MOVE;
    else if (rex & 8 && opcode == 0x87)
        store->kind = EXCHANGE;
    else if (opcode == 0x80 && (reg == 4 || reg == 1)) {
        store->kind = reg == 4 ? AND : OR;
        store->size = 1;
        store->operand = *at++;
    } else {
        return false;
    }
    store->length = (int)(at - code);
    return true;
}

static uint64_t flags_of_result(uint8_t value)
{
    uint64_t flags = value ? 0 : 1u << 6;
    if (value & 0x80)
        flags |= 1u << 7;
    return __builtin_parity(value) ? flags : flags | 1u << 2;
}

/* ptwr.emulate_write */
bool table_write(struct machine *m, struct vcpu *v, uint64_t address)
{
    struct cpu_state *s = m->processor.state;
    struct store store;
    struct change change;
    uint64_t at = l1e_maddr(m, v->kernel_root, address), code = walk(m, v->kernel_root, s->rip, PRESENT);
    uint8_t *info = m->ram + v->info_maddr, result = 0;
    if (at == NOWHERE || code == NOWHERE || !within_page(s->rip, 15) || (info[0] && !info[1]))
        return false;
    uint64_t mapping = word(m, at), mfn = mfn_of(mapping);
    if ((mapping & WRITABLE) != PRESENT || mfn >= frames(m) || m->frame_owners[mfn] != v->domain->domid)
        return false;
    if (!is_in_use_as(m, mfn, TYPE_L1))
        return false;
    if (!decode(m->ram + code, &store) || address & (uint64_t)(store.size - 1))
        return false;
    uint64_t maddr = mfn << 12 | (address & 0xFF8), old = word(m, maddr), new = old;
    if (store.size == 8) {
        new = s->regs[store.source];
    } else {
        int shift = (int)(address & 7) * 8;
        uint8_t before = (uint8_t)(old >> shift);
        uint8_t after = store.kind == AND ? before & store.operand : before | store.operand;
        new = (old & ~(0xFFull << shift)) | (uint64_t)after << shift;
        result = after;
    }
    if (new != old) {
        if (!plan_l1(m, v->domain, maddr, new, false, &change))
            return false;
        carry_out(m, &change);
    }
    if (store.kind == EXCHANGE)
        s->regs[store.source] = old;
    else if (store.size == 1)
        set_flags(s, (flags_of(&m->processor) & ~(uint64_t)FLAGS_ARITHMETIC) | flags_of_result(result));
    s->rip += (uint64_t)store.length;
    return true;
}
