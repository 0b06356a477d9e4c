/* What a program does to the files below one directory, seen or falsified; loaded by LD_PRELOAD, told by the environment:
 *
 *   DISK_SHIM_DIR       the directory (an absolute path); nothing else is touched
 *   DISK_SHIM_MODE      nosync: fsync and fdatasync return 0 and do nothing
 *                       record: every call is written to DISK_SHIM_LOG; syncs take up to DISK_SHIM_DELAY_US microseconds
 *                       and do nothing else; DISK_SHIM_FAIL_PER_10000 of them fail with EIO, and, as Linux does it,
 *                       every descriptor that the file had at that moment is told of the failure by its next sync
 *
 * The log is one sequence for all processes and threads (each record one write with O_APPEND). A write or a change of a name is
 * recorded after it was done, a sync before it begins and again after it ended: a write that stands before the first record of a
 * sync was therefore done before that sync began. The form of a record is struct record, then the path, then the data;
 * power_cut_model.py reads it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MOST_DESCRIPTORS 4096
#define MOST_PATH 4096

#define FAILURE_COUNTS 4096

struct record {
    uint8_t kind;
    uint8_t failed; /* of a sync that has ended: FAILED, TOLD, or 0 */
    uint16_t path_bytes;
    uint32_t data_bytes;
    uint64_t inode;
    uint64_t value; /* an offset, a size, or the number of a sync */
} __attribute__((packed));

enum { FAILED = 1, TOLD = 2 }; /* TOLD: the writes went well, the answer is that of an earlier failure */

static const char *directory;
static int nosync, recording, log_descriptor = -1;
static long delay_us, fail_per_10000;
static char *paths[MOST_DESCRIPTORS]; /* of descriptors that are open below the directory */
static uint64_t inodes[MOST_DESCRIPTORS];
static unsigned int told[MOST_DESCRIPTORS]; /* of so many failures of its file */
static atomic_ulong syncs;
static atomic_uint *failures; /* by inode, modulo FAILURE_COUNTS; shared by all processes */

#define REAL(result, name, ...) static result (*real_##name)(__VA_ARGS__)
REAL(int, open64, const char *, int, ...);
REAL(int, openat64, int, const char *, int, ...);
REAL(int, close, int);
REAL(ssize_t, write, int, const void *, size_t);
REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
REAL(int, ftruncate64, int, off64_t);
REAL(int, fsync, int);
REAL(int, fdatasync, int);
REAL(int, unlink, const char *);
REAL(int, rename, const char *, const char *);
REAL(int, mkdir, const char *, mode_t);

#define FIND(name) real_##name = dlsym(RTLD_NEXT, #name)

static void share_failures(void) {
    char path[MOST_PATH];
    int descriptor;
    if ((size_t)snprintf(path, sizeof path, "%s.failures", getenv("DISK_SHIM_LOG")) >= sizeof path)
        abort();
    descriptor = real_open64(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (real_ftruncate64(descriptor, FAILURE_COUNTS * sizeof *failures))
        abort();
    failures = mmap(NULL, FAILURE_COUNTS * sizeof *failures, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (failures == MAP_FAILED)
        abort();
    real_close(descriptor);
}

__attribute__((constructor)) static void begin(void) {
    const char *mode = getenv("DISK_SHIM_MODE"), *text;
    FIND(open64); FIND(openat64); FIND(close); FIND(write); FIND(pwrite64); FIND(ftruncate64);
    FIND(fsync); FIND(fdatasync); FIND(unlink); FIND(rename); FIND(mkdir);
    directory = getenv("DISK_SHIM_DIR");
    if (!mode || !directory)
        return;
    nosync = strcmp(mode, "nosync") == 0;
    recording = strcmp(mode, "record") == 0;
    if ((text = getenv("DISK_SHIM_DELAY_US")))
        delay_us = atol(text);
    if ((text = getenv("DISK_SHIM_FAIL_PER_10000")))
        fail_per_10000 = atol(text);
    if (recording) {
        log_descriptor = real_open64(getenv("DISK_SHIM_LOG"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        share_failures();
    }
}

static int is_ours(const char *path) {
    size_t length;
    if (!directory || !path)
        return 0;
    length = strlen(directory);
    return strncmp(path, directory, length) == 0 && (path[length] == '/' || path[length] == 0);
}

static const char *path_of(int descriptor) {
    return descriptor >= 0 && descriptor < MOST_DESCRIPTORS ? paths[descriptor] : NULL;
}

static void record(char kind, int failed, const char *path, uint64_t inode, uint64_t value, const void *data, size_t size) {
    int former = errno;
    struct record head = {(uint8_t)kind, (uint8_t)failed, (uint16_t)strlen(path), (uint32_t)size, inode, value};
    struct iovec parts[3] = {{&head, sizeof head}, {(void *)path, strlen(path)}, {(void *)data, size}};
    if (recording && writev(log_descriptor, parts, 3) != (ssize_t)(sizeof head + strlen(path) + size))
        abort();
    errno = former;
}

static long chance(long below) {
    static _Thread_local unsigned int seed;
    struct timespec now;
    if (!seed) {
        clock_gettime(CLOCK_MONOTONIC, &now);
        seed = (unsigned int)(now.tv_nsec ^ (long)getpid() << 16 ^ (long)&seed) | 1;
    }
    return rand_r(&seed) % below;
}

static int note_opened(int descriptor, const char *path, int flags, int was_there) {
    struct stat found;
    if (descriptor < 0 || descriptor >= MOST_DESCRIPTORS || !is_ours(path) || fstat(descriptor, &found))
        return descriptor;
    free(paths[descriptor]);
    paths[descriptor] = strdup(path);
    inodes[descriptor] = found.st_ino;
    if (recording)
        told[descriptor] = atomic_load(&failures[found.st_ino % FAILURE_COUNTS]);
    if (!was_there)
        record('C', 0, path, found.st_ino, 0, NULL, 0);
    else if (flags & O_TRUNC)
        record('T', 0, path, found.st_ino, 0, NULL, 0);
    return descriptor;
}

static int was_there(const char *path, int flags) {
    struct stat found;
    return !(flags & O_CREAT) || !is_ours(path) || lstat(path, &found) == 0;
}

#define MODE(flags, mode)                                 \
    mode_t mode = 0;                                      \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                \
        va_list rest;                                     \
        va_start(rest, flags);                            \
        mode = va_arg(rest, mode_t);                      \
        va_end(rest);                                     \
    }

int open64(const char *path, int flags, ...) {
    MODE(flags, mode)
    int there = was_there(path, flags);
    return note_opened(real_open64(path, flags, mode), path, flags, there);
}

int open(const char *path, int flags, ...) {
    MODE(flags, mode)
    int there = was_there(path, flags);
    return note_opened(real_open64(path, flags, mode), path, flags, there);
}

int openat64(int at, const char *path, int flags, ...) {
    MODE(flags, mode)
    int there = was_there(path, flags);
    return note_opened(real_openat64(at, path, flags, mode), path, flags, there);
}

int openat(int at, const char *path, int flags, ...) {
    MODE(flags, mode)
    int there = was_there(path, flags);
    return note_opened(real_openat64(at, path, flags, mode), path, flags, there);
}

int close(int descriptor) {
    if (path_of(descriptor)) {
        free(paths[descriptor]);
        paths[descriptor] = NULL;
    }
    return real_close(descriptor);
}

ssize_t write(int descriptor, const void *data, size_t size) {
    ssize_t written = real_write(descriptor, data, size);
    if (recording && written > 0 && path_of(descriptor))
        record('W', 0, paths[descriptor], inodes[descriptor], (uint64_t)(lseek64(descriptor, 0, SEEK_CUR) - written), data, (size_t)written);
    return written;
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
    ssize_t written = real_pwrite64(descriptor, data, size, offset);
    if (recording && written > 0 && path_of(descriptor))
        record('W', 0, paths[descriptor], inodes[descriptor], (uint64_t)offset, data, (size_t)written);
    return written;
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset) {
    return pwrite64(descriptor, data, size, offset);
}

int ftruncate64(int descriptor, off64_t size) {
    int result = real_ftruncate64(descriptor, size);
    if (!result && path_of(descriptor))
        record('T', 0, paths[descriptor], inodes[descriptor], (uint64_t)size, NULL, 0);
    return result;
}

int ftruncate(int descriptor, off_t size) {
    return ftruncate64(descriptor, size);
}

static int pretend_to_sync(int descriptor) {
    uint64_t number = (uint64_t)getpid() << 32 | atomic_fetch_add(&syncs, 1);
    atomic_uint *count = &failures[inodes[descriptor] % FAILURE_COUNTS];
    int outcome = fail_per_10000 && chance(10000) < fail_per_10000 ? FAILED : 0;
    record('S', 0, paths[descriptor], inodes[descriptor], number, NULL, 0);
    if (delay_us)
        usleep((useconds_t)chance(delay_us));
    if (outcome == FAILED)
        atomic_fetch_add(count, 1);
    if (told[descriptor] != atomic_load(count)) {
        told[descriptor] = atomic_load(count);
        outcome = outcome ? outcome : TOLD;
    }
    record('E', outcome, paths[descriptor], inodes[descriptor], number, NULL, 0);
    if (!outcome)
        return 0;
    errno = EIO;
    return -1;
}

int fsync(int descriptor) {
    if (!path_of(descriptor) || !(nosync || recording))
        return real_fsync(descriptor);
    return nosync ? 0 : pretend_to_sync(descriptor);
}

int fdatasync(int descriptor) {
    if (!path_of(descriptor) || !(nosync || recording))
        return real_fdatasync(descriptor);
    return nosync ? 0 : pretend_to_sync(descriptor);
}

int unlink(const char *path) {
    int result = real_unlink(path);
    if (!result && is_ours(path))
        record('U', 0, path, 0, 0, NULL, 0);
    return result;
}

int rename(const char *from, const char *to) {
    int result = real_rename(from, to);
    if (!result && is_ours(to))
        record('R', 0, from, 0, 0, to, strlen(to));
    return result;
}

int mkdir(const char *path, mode_t mode) {
    int result = real_mkdir(path, mode);
    if (!result && is_ours(path))
        record('M', 0, path, 0, 0, NULL, 0);
    return result;
}
