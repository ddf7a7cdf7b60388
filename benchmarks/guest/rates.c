/* How fast a guest's system calls, processes, faults and arithmetic are.
 *
 * For each test the program finds a count that takes about half a second of the guest's time, then prints
 *     RATES begin NAME COUNT
 * does that many operations, and prints
 *     RATES end NAME NANOSECONDS
 * with the guest's own measure. The observer outside takes the time between the two lines by its own clock.
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define ENOUGH_NS 500000000ull
#define PAGE 4096u
#define FAULT_PAGES 2048u
#define HASH_BYTES 1024u

static void check(int good, const char *what)
{
    if (!good) {
        perror(what);
        exit(1);
    }
}

static void getpid_calls(uint64_t count)
{
    while (count--)
        syscall(SYS_getpid);
}

static void fork_exits(uint64_t count)
{
    while (count--) {
        pid_t child = fork();
        check(child >= 0, "fork");
        if (child == 0)
            _exit(0);
        check(waitpid(child, NULL, 0) == child, "waitpid");
    }
}

static void page_faults(uint64_t count)
{
    while (count) {
        uint64_t pages = count < FAULT_PAGES ? count : FAULT_PAGES;
        volatile char *area = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        check(area != MAP_FAILED, "mmap");
        for (uint64_t page = 0; page < pages; page++)
            area[page * PAGE] = 1;
        munmap((void *)area, pages * PAGE);
        count -= pages;
    }
}

static void pipe_round_trips(uint64_t count)
{
    int there[2], back[2];
    char byte = 0;
    check(pipe(there) == 0 && pipe(back) == 0, "pipe");
    pid_t child = fork();
    check(child >= 0, "fork");
    if (child == 0) {
        for (uint64_t i = 0; i < count; i++)
            if (read(there[0], &byte, 1) != 1 || write(back[1], &byte, 1) != 1)
                _exit(1);
        _exit(0);
    }
    for (uint64_t i = 0; i < count; i++)
        check(write(there[1], &byte, 1) == 1 && read(back[0], &byte, 1) == 1, "pipe transfer");
    waitpid(child, NULL, 0);
    close(there[0]);
    close(there[1]);
    close(back[0]);
    close(back[1]);
}

/* SHA-256, FIPS 180-4. The round constants are the first 32 fraction bits of the cube roots of the first 64 primes. */
static uint32_t constants[64];

static uint32_t cube_root_fraction(uint32_t prime)
{
    /* The largest r with r^3 <= prime * 2^96, reduced modulo 2^32, found bit by bit; prime < 2^9, so r < 2^35. */
    unsigned __int128 root = 0;
    for (int bit = 34; bit >= 0; bit--) {
        unsigned __int128 guess = root | ((unsigned __int128)1 << bit);
        if (guess * guess * guess <= (unsigned __int128)prime << 96)
            root = guess;
    }
    return (uint32_t)root;
}

static void make_constants(void)
{
    uint32_t found = 0;
    for (uint32_t candidate = 2; found < 64; candidate++) {
        uint32_t divisor = 2;
        while (divisor * divisor <= candidate && candidate % divisor)
            divisor++;
        if (divisor * divisor > candidate)
            constants[found++] = cube_root_fraction(candidate);
    }
}

static uint32_t rotate(uint32_t word, int by)
{
    return word >> by | word << (32 - by);
}

static void sha256_block(uint32_t state[8], const uint8_t *block)
{
    uint32_t w[64], s[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 | (uint32_t)block[4 * i + 2] << 8 | block[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t low = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
        uint32_t high = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
        w[i] = w[i - 16] + low + w[i - 7] + high;
    }
    memcpy(s, state, sizeof s);
    for (int i = 0; i < 64; i++) {
        uint32_t sum1 = rotate(s[4], 6) ^ rotate(s[4], 11) ^ rotate(s[4], 25);
        uint32_t first = s[7] + sum1 + ((s[4] & s[5]) ^ (~s[4] & s[6])) + constants[i] + w[i];
        uint32_t sum0 = rotate(s[0], 2) ^ rotate(s[0], 13) ^ rotate(s[0], 22);
        uint32_t second = sum0 + ((s[0] & s[1]) ^ (s[0] & s[2]) ^ (s[1] & s[2]));
        memmove(s + 1, s, 7 * sizeof s[0]);
        s[4] += first;
        s[0] = first + second;
    }
    for (int i = 0; i < 8; i++)
        state[i] += s[i];
}

static uint32_t state[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a, 0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};

static void sha256_kib(uint64_t count)
{
    static uint8_t data[HASH_BYTES];
    while (count--)
        for (uint32_t offset = 0; offset < HASH_BYTES; offset += 64)
            sha256_block(state, data + offset);
}

/* "abc" has the digest ba7816bf ... f20015ad: a wrong engine must not win by computing something else. */
static void check_sha256(void)
{
    uint32_t fresh[8];
    uint8_t block[64] = {'a', 'b', 'c', 0x80, [63] = 24};
    memcpy(fresh, state, sizeof fresh);
    sha256_block(fresh, block);
    if (fresh[0] != 0xba7816bf || fresh[7] != 0xf20015ad) {
        printf("RATES wrong sha256\n");
        exit(1);
    }
}

static uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000ull + (uint64_t)now.tv_nsec;
}

static void measure(const char *name, void (*operations)(uint64_t))
{
    uint64_t count = 16, taken;
    for (;;) {
        uint64_t start = now_ns();
        operations(count);
        taken = now_ns() - start;
        if (taken * 4 >= ENOUGH_NS)
            break;
        count *= 2;
    }
    count = count * ENOUGH_NS / taken + 1;
    printf("RATES begin %s %llu\n", name, (unsigned long long)count);
    uint64_t start = now_ns();
    operations(count);
    printf("RATES end %s %llu\n", name, (unsigned long long)(now_ns() - start));
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    make_constants();
    check_sha256();
    measure("getpid", getpid_calls);
    measure("fork_exit", fork_exits);
    measure("page_fault", page_faults);
    measure("pipe_round_trip", pipe_round_trips);
    measure("sha256_kib", sha256_kib);
    printf("RATES done\n");
    return 0;
}
