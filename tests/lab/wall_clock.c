/* Preloaded, it makes clocks wrong by the nanoseconds in the file WALL_CLOCK_OFFSET, which a test changes while the
   program runs: 8 bytes for the wall clock, and 8 for the monotonic clock. What waits, waits as long as it would have. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL

static const volatile long long *offset;

__attribute__((constructor)) static void look_up(void) {
  const char *path = getenv("WALL_CLOCK_OFFSET");
  int fd = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  void *page = fd >= 0 ? mmap(NULL, 2 * sizeof *offset, PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
  if (fd >= 0) close(fd);
  if (page != MAP_FAILED) offset = page;
}

static struct timespec moved(struct timespec when, long long by) {
  long long ns = when.tv_sec * SECOND + when.tv_nsec + by;
  return (struct timespec){.tv_sec = ns / SECOND, .tv_nsec = ns % SECOND};
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int failed = (int)syscall(SYS_clock_gettime, clock, now);
  int is_wall = clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE;
  if (!failed && offset && (is_wall || clock == CLOCK_MONOTONIC)) *now = moved(*now, offset[is_wall ? 0 : 1]);
  return failed;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
  struct timespec exact;
  (void)zone;
  clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return 0;
}

time_t time(time_t *result) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (result) *result = exact.tv_sec;
  return exact.tv_sec;
}

/* Python's locks, and its GIL, wait until a time of the monotonic clock: the kernel is to be given the true one. */

static struct timespec kernels(const struct timespec *end) {
  int is_monotonic = end->tv_sec < 1000000000; /* nobody has been up for 30 years */
  return moved(*end, offset && is_monotonic ? -offset[1] : 0);
}

int sem_clockwait(sem_t *restrict semaphore, clockid_t clock, const struct timespec *restrict end) {
  int (*real)(sem_t *, clockid_t, const struct timespec *) = dlsym(RTLD_NEXT, "sem_clockwait");
  struct timespec at = kernels(end);
  return real(semaphore, clock, &at);
}

int pthread_cond_timedwait(pthread_cond_t *restrict condition, pthread_mutex_t *restrict mutex,
                           const struct timespec *restrict end) {
  int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *) = dlsym(RTLD_NEXT, "pthread_cond_timedwait");
  struct timespec at = kernels(end);
  return real(condition, mutex, &at);
}

int clock_nanosleep(clockid_t clock, int flags, const struct timespec *wanted, struct timespec *left) {
  struct timespec until = flags & TIMER_ABSTIME ? kernels(wanted) : *wanted;
  return syscall(SYS_clock_nanosleep, clock, flags, &until, left) ? errno : 0;
}
