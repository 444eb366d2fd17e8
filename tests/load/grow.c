// Grows by MIB_PER_SECOND in one named function, until it holds MIB_MAX, then waits for the end of its input.
// grow MIB_PER_SECOND MIB_MAX
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { STEP = 256 * 1024, PAGE = 4096 };

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

__attribute__((noinline)) void leak_upload_parts(void) {
  char *part = mmap(0, STEP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (part == MAP_FAILED) exit(3);
  for (int i = 0; i < STEP; i += PAGE) part[i] = 1;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  double rate = atof(argv[1]) * 1048576, max = atof(argv[2]) * 1048576, held = 0, began = now();
  puts("growing");
  fflush(stdout);
  while (held < max) {
    double want = (now() - began) * rate;
    for (; held < want && held < max; held += STEP) leak_upload_parts();
    usleep(5000);
  }
  puts("full");
  fflush(stdout);
  char byte;
  return (int)read(0, &byte, 1);
}
