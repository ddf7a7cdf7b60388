/* What the native helper's files share: the state that Python keeps (shared_state.py), and guest memory. */

#ifndef XENOLITH_MACHINE_H
#define XENOLITH_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "../cpu/processor.h"

#define PRESENT 1
#define WRITABLE 3
#define ADDRESS 0x000FFFFFFFFFF000ull
#define CANONICAL_LOW_END 0x0000800000000000ull
#define HYPERVISOR_START 0xFFFF800000000000ull
#define HYPERVISOR_END 0xFFFF880000000000ull

#define FRAME_EXECUTABLE 4
enum { TYPE_NONE, TYPE_L1, TYPE_L2, TYPE_L3, TYPE_L4, TYPE_SEG_DESC, TYPE_SHARED, TYPE_WRITABLE };

struct gate {
    uint64_t address;
    uint16_t selector;
    uint8_t dpl;
    uint8_t masks_events;
};

struct callback {
    uint64_t address;
    uint8_t masks_events;
};

struct hypercalls {
    uint64_t made;
    uint64_t calls[16][5];
};

struct domain {
    int32_t domid;
    uint32_t vcpus;     /* how many there are, 0 if that is not settled */
    uint64_t vm_assist;
};

struct vcpu {
    struct domain *domain;
    uint64_t info_maddr;
    uint64_t kernel_root;
    uint64_t user_root;
    uint64_t kernel_sp;
    uint64_t kernel_ss;
    uint64_t other_gs_base;
    uint32_t upcall_streak;
    uint32_t shown_iopl;
    uint8_t iopl;
    uint8_t kernel_mode;
    uint8_t nmi_pending;
    struct callback callbacks[8];
    struct hypercalls hypercalls;
    struct gate traps[256];
};

struct machine {
    struct processor processor;
    struct vcpu *current;
    uint8_t *ram;
    uint64_t ram_size;
    int32_t *frame_owners;
    uint32_t *frame_counts;
    uint8_t *frame_types;
    uint32_t *frame_type_counts;
    uint8_t *frame_flags;
    uint64_t *frame_stale_epochs;
    uint64_t *epoch;
    uint64_t hypercall_counts[64];
    uint8_t reschedule, traced;
};

/* -- memory ------------------------------------------------------------------------------------------------------------ */

#define NOWHERE UINT64_MAX

static inline uint64_t word(const struct machine *m, uint64_t maddr)
{
    uint64_t value = 0;
    if (maddr + 8 <= m->ram_size)
        memcpy(&value, m->ram + maddr, 8);
    return value;
}

/* The machine address of `vaddr` under the L4 at `root`; NOWHERE if some level lacks one of the flags `needed`. */
static inline uint64_t translate(const struct machine *m, uint64_t root, uint64_t vaddr, uint64_t needed)
{
    uint64_t table = root;
    for (int shift = 39; shift >= 12; shift -= 9) {
        uint64_t entry = word(m, table + (vaddr >> shift & 511) * 8);
        if ((entry & needed) != needed)
            return NOWHERE;
        table = entry & ADDRESS;
    }
    return table < m->ram_size ? table | (vaddr & 0xFFF) : NOWHERE;
}

/* The same for an address of the guest's. */
static inline uint64_t walk(const struct machine *m, uint64_t root, uint64_t vaddr, uint64_t needed)
{
    if (vaddr >= CANONICAL_LOW_END && vaddr < HYPERVISOR_END)
        return NOWHERE;
    return translate(m, root, vaddr, needed);
}

static inline bool within_page(uint64_t vaddr, uint64_t size)
{
    return (vaddr & 0xFFF) + size <= 4096;
}

static inline bool is_guest_address(uint64_t vaddr)
{
    return vaddr < CANONICAL_LOW_END || vaddr >= HYPERVISOR_END;
}

/* -- the processor ----------------------------------------------------------------------------------------------------- */

void load_root(struct machine *m, uint64_t root);

/* -- page tables (tables.c) -------------------------------------------------------------------------------------------- */

bool mmu_update(struct machine *m, struct vcpu *v, uint64_t requests, uint32_t count, uint64_t done, uint32_t foreign);
bool update_va_mapping(struct machine *m, struct vcpu *v, uint64_t vaddr, uint64_t value, uint64_t flags);
bool mmuext_op(struct machine *m, struct vcpu *v, uint64_t operations, uint32_t count, uint64_t done, uint32_t foreign);
bool table_write(struct machine *m, struct vcpu *v, uint64_t address);

/* From now on nothing is changed that would have another frame than now, or none, at `vaddr`; 0 ends that. Returns where
 * that is in memory if the kernel can write there, or NOWHERE.
 */
uint64_t keep_mapped(const struct machine *m, const struct vcpu *v, uint64_t vaddr);

#endif
