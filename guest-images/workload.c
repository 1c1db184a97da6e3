/*
 * The guest's own program: writes, reads and verifies traceable data, straight to a disk.
 *
 * Every sector that it writes names the operation that wrote it and its place, with the bytes of
 * qmpshim/conformance/workload/pattern.py: 64 little-endian words TAG ^ STEP * i, TAG = operation << 36 |
 * sector. A read tells whose data it found, so that the model can be asked whether that is right.
 *
 *     workload FILE write OP START COUNT     write COUNT sectors (of 512 bytes) from START on
 *     workload FILE read OP START COUNT      tell whose sectors are there
 *     workload FILE verify OP START COUNT OWNER    are they all OWNER's (0: zeroes)?
 *     workload FILE zero OP START COUNT      BLKZEROOUT
 *     workload FILE discard OP START COUNT   BLKDISCARD
 *     workload FILE flush OP                 fsync
 *     workload FILE random SEED COUNT OP START LENGTH
 *                        COUNT operations, numbered from OP on, within LENGTH sectors from START
 *
 * Several operations follow each other with a comma between them. One line is told for each:
 * "OP KIND START COUNT" and "ok", an errno, "wrong" with the sectors' owners, or (read) the owners:
 * runs OWNERxCOUNT joined by "+"; OWNER is an operation, 0 for zeroes, OP@SECTOR for data that
 * belongs to another place (of the run's first sector), ?HEX (first 8 bytes) for what nobody wrote.
 * The exit status is 1 if an operation failed or a verification did not hold, 2 for a bad call.
 *
 * FILE may be a disk (opened with O_DIRECT, as everything else) or a file, which is created.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define SECTOR 512
#define WORDS (SECTOR / 8)
#define MOST 4096 /* sectors of one operation */
#define SECTOR_BITS 36
#define SECTOR_MASK ((UINT64_C(1) << SECTOR_BITS) - 1)
#define STEP UINT64_C(0x9E3779B97F4A7C15)
#define BLKZEROOUT 0x127f /* linux/fs.h: _IO(0x12, 127) */
#define BLKDISCARD 0x1277 /* linux/fs.h: _IO(0x12, 119) */

static uint64_t *buffer;
static int file, failed;

static void fill(uint64_t op, uint64_t start, uint64_t count)
{
    uint64_t *word = buffer;
    for (uint64_t s = 0; s < count; s++) {
        uint64_t tag = op << SECTOR_BITS | (start + s);
        for (int i = 0; i < WORDS; i++)
            *word++ = tag ^ STEP * i;
    }
}

/* All of it or an errno: the kernel may do a part only. */
static int transfer(int writing, uint64_t start, uint64_t count)
{
    char *at = (char *)buffer;
    size_t left = count * SECTOR;
    off_t offset = start * SECTOR;
    while (left) {
        ssize_t n = writing ? pwrite(file, at, left, offset) : pread(file, at, left, offset);
        if (n < 0)
            return errno;
        if (n == 0)
            return ENODATA; /* the end of the disk or file */
        at += n, offset += n, left -= n;
    }
    return 0;
}

enum { DATA, ZERO, STRANGE };

struct owner {
    int kind;
    uint64_t op;   /* STRANGE: the first word */
    uint64_t home; /* DATA: the sector it was written for */
};

static struct owner owner_of(const uint64_t *sector)
{
    struct owner who = { DATA, sector[0] >> SECTOR_BITS, sector[0] & SECTOR_MASK };
    int zero = 1, good = who.op != 0;
    for (int i = 0; i < WORDS; i++) {
        zero &= sector[i] == 0;
        good &= sector[i] == (sector[0] ^ STEP * i);
    }
    if (zero || !good)
        who = (struct owner){ zero ? ZERO : STRANGE, sector[0], 0 };
    return who;
}

static void tell_owners(uint64_t start, uint64_t count)
{
    for (uint64_t at = 0; at < count;) {
        struct owner first = owner_of(buffer + at * WORDS);
        uint64_t n = 1;
        for (; at + n < count; n++) {
            struct owner next = owner_of(buffer + (at + n) * WORDS);
            if (next.kind != first.kind || next.op != first.op ||
                (first.kind == DATA && next.home != first.home + n))
                break;
        }
        printf(at ? "+" : " ");
        if (first.kind == ZERO)
            printf("0");
        else if (first.kind == STRANGE) {
            printf("?");
            for (int i = 0; i < 8; i++)
                printf("%02x", ((unsigned char *)&first.op)[i]);
        } else if (first.home == start + at)
            printf("%" PRIu64, first.op);
        else
            printf("%" PRIu64 "@%" PRIu64, first.op, first.home);
        printf("x%" PRIu64, n);
        at += n;
    }
    printf("\n");
}

static int all_owned(uint64_t owner, uint64_t start, uint64_t count)
{
    for (uint64_t s = 0; s < count; s++) {
        struct owner who = owner_of(buffer + s * WORDS);
        if (owner ? who.kind != DATA || who.op != owner || who.home != start + s
                  : who.kind != ZERO)
            return 0;
    }
    return 1;
}

static void operate(const char *kind, uint64_t op, uint64_t start, uint64_t count, uint64_t owner)
{
    uint64_t range[2] = { start * SECTOR, count * SECTOR };
    int error = 0, reads = 0;

    printf("%" PRIu64 " %s %" PRIu64 " %" PRIu64, op, kind, start, count);
    if (!strcmp(kind, "write")) {
        fill(op, start, count);
        error = transfer(1, start, count);
    } else if (!strcmp(kind, "read") || !strcmp(kind, "verify")) {
        error = transfer(0, start, count);
        reads = 1;
    } else if (!strcmp(kind, "zero"))
        error = ioctl(file, BLKZEROOUT, range) ? errno : 0;
    else if (!strcmp(kind, "discard"))
        error = ioctl(file, BLKDISCARD, range) ? errno : 0;
    else
        error = fsync(file) ? errno : 0;

    if (error) {
        printf(" %d\n", error);
        failed = 1;
    } else if (reads && kind[0] == 'r')
        tell_owners(start, count);
    else if (reads && !all_owned(owner, start, count)) {
        printf(" wrong");
        tell_owners(start, count);
        failed = 1;
    } else
        printf(" ok\n");
    fflush(stdout);
}

/* splitmix64 (Sebastiano Vigna, public domain); qmpshim/conformance/guest/work.py does the same. */
static uint64_t state;

static uint64_t next_random(void)
{
    uint64_t z = state += STEP;
    z = (z ^ z >> 30) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ z >> 27) * UINT64_C(0x94D049BB133111EB);
    return z ^ z >> 31;
}

static void at_random(uint64_t seed, uint64_t times, uint64_t op, uint64_t base, uint64_t length)
{
    static const char *const kinds[16] = {
        "write", "write", "write", "write", "write", "write", "write", "zero",
        "read",  "read",  "read",  "read",  "read",  "read",  "read",  "flush",
    };
    state = seed;
    for (; times--; op++) {
        const char *kind = kinds[next_random() % 16];
        uint64_t shape = next_random(), start = next_random(), count;
        switch (shape % 4) {
        case 0: count = 1; break;
        case 1: count = 8; break;
        case 2: count = 1 + (shape >> 8) % 256; break;
        default: count = 128; break;
        }
        if (count > length)
            count = length;
        start %= length - count + 1;
        if (shape >> 4 & 1)
            start -= start % 8;
        if (kind[0] == 'f')
            operate(kind, op, 0, 0, 0);
        else
            operate(kind, op, base + start, count, 0);
    }
}

static void bad(const char *why)
{
    fprintf(stderr, "workload: %s\n", why);
    exit(2);
}

static uint64_t number(const char *text)
{
    char *end;
    uint64_t value;
    if (!text || !strcmp(text, ","))
        bad("a number is missing");
    value = strtoull(text, &end, 0);
    if (*end || end == text)
        bad("that is no number");
    return value;
}

static int arguments_of(const char *kind)
{
    static const struct { const char *kind; int count; } known[] = {
        { "write", 3 }, { "read", 3 }, { "verify", 4 }, { "zero", 3 },
        { "discard", 3 }, { "flush", 1 }, { "random", 5 },
    };
    for (size_t i = 0; i < sizeof(known) / sizeof(*known); i++)
        if (!strcmp(kind, known[i].kind))
            return known[i].count;
    bad("no such operation");
    return 0;
}

int main(int argc, char **argv)
{
    if (argc < 3)
        bad("FILE OPERATION... (see workload.c)");
    if (posix_memalign((void **)&buffer, 4096, MOST * SECTOR))
        bad("no memory");
    file = open(argv[1], O_RDWR | O_DIRECT | O_CREAT, 0600);
    if (file < 0) {
        perror(argv[1]);
        return 2;
    }
    for (char **word = argv + 2; *word;) {
        char *kind = *word++;
        uint64_t n[5] = { 0 };
        int wanted = arguments_of(kind);
        for (int i = 0; i < wanted; i++)
            n[i] = number(*word ? *word++ : NULL);
        if (wanted == 5) {
            if (!n[4])
                bad("random needs room");
            at_random(n[0], n[1], n[2], n[3], n[4]);
        } else {
            if (n[2] > MOST && (kind[0] != 'z' && kind[0] != 'd'))
                bad("too many sectors");
            operate(kind, n[0], n[1], n[2], n[3]);
        }
        if (*word && strcmp(*word++, ","))
            bad("a comma is missing");
    }
    return failed;
}
