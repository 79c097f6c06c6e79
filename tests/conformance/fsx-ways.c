/* What the crate fsx cannot do by itself, put before the C library (LD_PRELOAD): its file opened with O_DIRECT, and its file worked
 * on through a second mount, call by call at random. fsx goes on comparing everything with its copy in memory.
 *
 *   FSX_FILE    the file, as fsx is given it; other files are left alone
 *   FSX_DIRECT  if set, the file is opened with O_DIRECT
 *   FSX_OTHER   the same file in another mount
 *   FSX_SEED    of the dice that choose between the two
 *
 * fsx 0.3.2 never unmaps what it mapped for reading, and would run into the kernel's limit of 65,530 mappings: all but the
 * last few hundred, which stay to see that they disturb nothing, are unmapped here.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#define FIND(as, name) __typeof__(name) *as = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)
#define NEXT(name) FIND(next, name)
#define KEPT 300

/* The file as fsx knows it, and in the other mount; -1: none. */
static int first = -1, second = -1;
static uint64_t dice;
static struct { void *at; size_t length; } kept[KEPT];
static unsigned turn;

/* xorshift64*, the same everywhere for the same seed. */
static int coin(void) {
  if (dice == 0) {
    const char *seed = getenv("FSX_SEED");
    dice = strtoull(seed ? seed : "1", NULL, 10) * 0x9e3779b97f4a7c15u | 1;
  }
  dice ^= dice >> 12, dice ^= dice << 25, dice ^= dice >> 27;
  return (dice * 0x2545f4914f6cdd1du) >> 63;
}

static int either(int file) {
  return file >= 0 && file == first && second >= 0 && coin() ? second : file;
}

int open64(const char *path, int flags, ...) {
  NEXT(open64);
  va_list rest;
  va_start(rest, flags);
  mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
  va_end(rest);
  const char *own = getenv("FSX_FILE"), *other = getenv("FSX_OTHER");
  if (own == NULL || strcmp(path, own) != 0) return next(path, flags, mode);
  if (getenv("FSX_DIRECT")) flags |= O_DIRECT;
  first = next(path, flags, mode);
  if (first < 0 || other == NULL) return first;
  second = next(other, flags & ~(O_CREAT | O_EXCL | O_TRUNC));
  if (second < 0) {
    perror(other);
    exit(1);
  }
  return first;
}

int close(int file) {
  NEXT(close);
  if (file >= 0 && file == first) {
    if (second >= 0) next(second);
    first = second = -1;
  }
  return next(file);
}

ssize_t pread64(int file, void *buffer, size_t length, off64_t offset) {
  NEXT(pread64);
  return next(either(file), buffer, length, offset);
}

ssize_t pwrite64(int file, const void *buffer, size_t length, off64_t offset) {
  NEXT(pwrite64);
  return next(either(file), buffer, length, offset);
}

int ftruncate64(int file, off64_t length) {
  NEXT(ftruncate64);
  return next(either(file), length);
}

int fstat64(int file, struct stat64 *answer) {
  NEXT(fstat64);
  return next(either(file), answer);
}

int statx(int file, const char *path, int flags, unsigned mask, struct statx *answer) {
  NEXT(statx);
  return next(either(file), path, flags, mask, answer);
}

off64_t lseek64(int file, off64_t offset, int whence) {
  NEXT(lseek64);
  return next(either(file), offset, whence);
}

int fsync(int file) {
  NEXT(fsync);
  return next(either(file));
}

int fdatasync(int file) {
  NEXT(fdatasync);
  return next(either(file));
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t length) {
  NEXT(sendfile64);
  return next(out, either(in), offset, length);
}

int posix_fadvise(int file, off_t offset, off_t length, int advice) {
  NEXT(posix_fadvise);
  return next(either(file), offset, length, advice);
}

int posix_fallocate(int file, off_t offset, off_t length) {
  NEXT(posix_fallocate);
  return next(either(file), offset, length);
}

int fallocate(int file, int mode, off_t offset, off_t length) {
  NEXT(fallocate);
  return next(either(file), mode, offset, length);
}

/* copy_file_range comes this way. */
long syscall(long number, ...) {
  NEXT(syscall);
  long a[6];
  va_list rest;
  va_start(rest, number);
  for (int at = 0; at < 6; at++) a[at] = va_arg(rest, long);
  va_end(rest);
  if (number == SYS_copy_file_range) {
    a[0] = either((int)a[0]);
    a[2] = either((int)a[2]);
  }
  return next(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

void *mmap(void *at, size_t length, int protection, int flags, int file, off_t offset) {
  NEXT(mmap);
  if (file < 0 || file != first) return next(at, length, protection, flags, file, offset);
  FIND(unmap, munmap);
  turn = (turn + 1) % KEPT;
  if (kept[turn].at) unmap(kept[turn].at, kept[turn].length);
  kept[turn].at = NULL;
  void *mapped = next(at, length, protection, flags, either(file), offset);
  if (mapped != MAP_FAILED) kept[turn].at = mapped, kept[turn].length = length;
  return mapped;
}

int munmap(void *at, size_t length) {
  NEXT(munmap);
  for (unsigned place = 0; place < KEPT; place++)
    if (kept[place].at == at) kept[place].at = NULL;
  return next(at, length);
}
