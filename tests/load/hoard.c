// Keeps MIB_PER_SECOND more from malloc in one named function, until it holds MIB_MAX, and in another one takes and frees as
// much again. With `storm` it also calls malloc and free for as long as it would rest.
// hoard MIB_PER_SECOND MIB_MAX [storm]
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { PART = 3000 };

struct part {
  struct part *next;
};

static struct part *parts;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static struct part *touched(void) {
  struct part *part = malloc(PART);
  if (!part) exit(3);
  memset(part, 1, PART);
  return part;
}

__attribute__((noinline)) void keep_session_parts(void) {
  struct part *part = touched();
  part->next = parts;
  parts = part;
}

__attribute__((noinline)) void give_back(void) {
  struct part *part = touched();
  free(part);
}

__attribute__((noinline)) void storm(double until) {
  while (now() < until)
    for (int i = 0; i < 100; i++) free(malloc(32));
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  double rate = atof(argv[1]) * 1048576, max = atof(argv[2]) * 1048576, held = 0, began = now();
  puts("growing");
  fflush(stdout);
  for (;;) {
    double want = (now() - began) * rate;
    for (; held < want && held < max; held += PART) {
      keep_session_parts();
      give_back();
    }
    if (argc > 3)
      storm(now() + 0.005);
    else
      usleep(5000);
  }
}
