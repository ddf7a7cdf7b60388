/*
 * A PV guest that does one thing many times, between lines that an observer times: hypercalls, event channels and
 * grants with nothing around them. It is told "serve DOMID", to answer that domain, or "ask DOMID", to ask it.
 *
 * Numbers and structures are Xen's public interface: xen/include/public/{xen,event_channel,grant_table,sched}.h.
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

#define VIRT_BASE 0xffffffff80000000UL
#define M2P ((const u64 *)0xffff800000000000UL)
#define DOMID_SELF 0x7ff0

enum { UPDATE_VA_MAPPING = 14, XEN_VERSION = 17, GRANT_TABLE_OP = 20, SCHED_OP = 29, EVENT_CHANNEL_OP = 32 };
enum { SCHED_SHUTDOWN = 2, SCHED_POLL = 3 };
enum { BIND_INTERDOMAIN = 0, SEND = 4, ALLOC_UNBOUND = 6 };
enum { MAP_GRANT_REF = 0, UNMAP_GRANT_REF = 1, SETUP_TABLE = 2 };
enum { INVLPG = 2, HOST_MAP = 2, PERMIT_ACCESS = 1, PRESENT_WRITABLE_USER = 7 };
enum { FIRST_GRANT = 8, FIRST_PORT = 3, HYPERCALLS = 200000, ROUND_TRIPS = 10000, MAPPINGS = 10000 };

struct start_info {
    char magic[32];
    u64 nr_pages, shared_info;
    u32 flags;
    u64 store_mfn;
    u32 store_port;
    u64 console_mfn;
    u32 console_port;
    u64 pt_base, nr_pt_frames;
    const u64 *mfn_list;
    u64 mod_start, mod_len;
    char cmd_line[1024];
};

struct console {
    char in[1024], out[2048];
    u32 in_cons, in_prod;
    volatile u32 out_cons, out_prod;
};

struct shared_info {
    u8 vcpus[2048];
    volatile u64 pending[64];
};

static u8 shared_page[4096] __attribute__((aligned(4096)));
static u8 table_page[4096] __attribute__((aligned(4096)));
static u8 granted_page[4096] __attribute__((aligned(4096)));
static u8 mapped_page[4096] __attribute__((aligned(4096)));
static struct shared_info *const shared = (void *)shared_page;
static const struct start_info *start;

static long hypercall(long number, u64 a, u64 b, u64 c)
{
    long result;
    asm volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "r10", "r8", "memory");
    return result;
}

static void notify(u32 port)
{
    hypercall(EVENT_CHANNEL_OP, SEND, (u64)&port, 0);
}

static void say(const char *text)
{
    struct console *ring = (void *)(VIRT_BASE + (M2P[start->console_mfn] << 12));
    for (; *text; text++) {
        while (ring->out_prod - ring->out_cons >= sizeof ring->out)
            notify(start->console_port);
        ring->out[ring->out_prod % sizeof ring->out] = *text;
        asm volatile("" ::: "memory");
        ring->out_prod++;
    }
    notify(start->console_port);
}

static void stop(u32 reason)
{
    hypercall(SCHED_OP, SCHED_SHUTDOWN, (u64)&reason, 0);
}

static void check(long result)
{
    if (result < 0) {
        say("refused\n");
        stop(3);
    }
}

static void map(void *at, u64 maddr)
{
    check(hypercall(UPDATE_VA_MAPPING, (u64)at, maddr | PRESENT_WRITABLE_USER, INVLPG));
}

static void wait(u32 port)
{
    struct {
        u32 *ports;
        u32 count;
        u64 timeout;
    } poll = {&port, 1, 0};
    while (!(shared->pending[0] >> port & 1))
        hypercall(SCHED_OP, SCHED_POLL, (u64)&poll, 0);
    asm volatile("lock andq %1, %0" : "+m"(shared->pending[0]) : "r"(~(1UL << port)) : "memory");
}

static void serve(u16 domid)
{
    struct {
        u16 dom, remote;
        u32 port;
    } unbound = {DOMID_SELF, domid, 0};
    u64 frame = 0;
    struct {
        u16 dom;
        u32 frames;
        u16 status;
        u64 *list;
    } setup = {DOMID_SELF, 1, 0, &frame};
    struct {
        u16 flags, domid;
        u32 frame;
    } *const table = (void *)table_page;

    check(hypercall(EVENT_CHANNEL_OP, ALLOC_UNBOUND, (u64)&unbound, 0));
    check(hypercall(GRANT_TABLE_OP, SETUP_TABLE, (u64)&setup, 1));
    map(table_page, frame << 12);
    table[FIRST_GRANT].domid = domid;
    table[FIRST_GRANT].frame = start->mfn_list[((u64)granted_page - VIRT_BASE) >> 12];
    asm volatile("" ::: "memory");
    table[FIRST_GRANT].flags = PERMIT_ACCESS;
    say("SERVING\n");
    for (;;) {
        wait(unbound.port);
        notify(unbound.port);
    }
}

static void ask(u16 domid)
{
    struct {
        u16 remote;
        u32 remote_port, port;
    } bound = {domid, FIRST_PORT, 0};
    struct {
        u64 address;
        u32 flags, ref;
        u16 dom, status;
        u32 handle;
        u64 bus_address;
    } mapping = {(u64)mapped_page, HOST_MAP, FIRST_GRANT, domid, 0, 0, 0};
    struct {
        u64 address, bus_address;
        u32 handle;
        u16 status;
    } unmapping = {(u64)mapped_page, 0, 0, 0};
    int i;

    say("RATES begin null_hypercall 200000\n");
    for (i = 0; i < HYPERCALLS; i++)
        hypercall(XEN_VERSION, 0, 0, 0);
    say("RATES end null_hypercall\n");

    check(hypercall(EVENT_CHANNEL_OP, BIND_INTERDOMAIN, (u64)&bound, 0));
    say("RATES begin event_round_trip 10000\n");
    for (i = 0; i < ROUND_TRIPS; i++) {
        notify(bound.port);
        wait(bound.port);
    }
    say("RATES end event_round_trip\n");

    say("RATES begin grant_map_unmap 10000\n");
    for (i = 0; i < MAPPINGS; i++) {
        check(hypercall(GRANT_TABLE_OP, MAP_GRANT_REF, (u64)&mapping, 1));
        if (mapping.status)
            check(-1);
        unmapping.handle = mapping.handle;
        check(hypercall(GRANT_TABLE_OP, UNMAP_GRANT_REF, (u64)&unmapping, 1));
    }
    say("RATES end grant_map_unmap\n");
    say("RATES done\n");
}

void run(const struct start_info *given)
{
    const char *word = given->cmd_line;
    u16 domid = 0;
    start = given;
    map(shared_page, start->shared_info);
    while (*word && *word != ' ')
        word++;
    while (*++word >= '0' && *word <= '9')
        domid = domid * 10 + (*word - '0');
    if (given->cmd_line[0] == 's')
        serve(domid);
    ask(domid);
    stop(0);
}

asm(".globl _start\n_start: mov %rsi, %rdi\n and $-16, %rsp\n call run\n ud2\n"
    ".macro note type, kind, value:vararg\n .balign 4\n .long 4, 2f - 1f, \\type\n .asciz \"Xen\"\n"
    "1: \\kind \\value\n2: .balign 4\n .endm\n"
    ".pushsection .note.Xen, \"a\", @note\n"
    "note 6, .asciz, \"costs\"\n note 5, .asciz, \"xen-3.0\"\n note 8, .asciz, \"generic\"\n note 9, .asciz, \"yes\"\n"
    "note 3, .quad, 0xffffffff80000000\n note 4, .quad, 0xffffffff80000000\n note 1, .quad, _start\n"
    ".popsection\n");
