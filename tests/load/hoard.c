// Keeps MIB_PER_SECOND more from malloc in one named function, until it holds MIB_MAX, and in another one takes and frees as
// much again. With `storm` it also calls malloc and free for as long as it would rest. At SIGUSR1 it executes itself anew, and
// keeps in a function of another name; at SIGUSR2 it forks a child that keeps in one of its own, and tells how that ended.
// hoard MIB_PER_SECOND MIB_MAX [storm|anew]
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { PART = 3000, CHILD_PARTS = 3000 };

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

static void keep(struct part *part) {
  part->next = parts;
  parts = part;
}

__attribute__((noinline)) void keep_session_parts(void) { keep(touched()); }

__attribute__((noinline)) void keep_anew(void) { keep(touched()); }

__attribute__((noinline)) void keep_in_child(void) { keep(touched()); }

__attribute__((noinline)) void give_back(void) {
  struct part *part = touched();
  free(part);
}

__attribute__((noinline)) void storm(double until) {
  while (now() < until)
    for (int i = 0; i < 100; i++) free(malloc(32));
}

static volatile sig_atomic_t asked;

static void ask(int signal) { asked = signal; }

static void execute_anew(char **argv) {
  char *args[] = {argv[0], argv[1], argv[2], "anew", NULL};
  execv("/proc/self/exe", args);
  exit(4);
}

static void fork_child(void) {
  if (fork() != 0) return;
  for (int i = 0; i < CHILD_PARTS; i++) {
    keep_in_child();
    if (i % 3 == 0) usleep(1000);
  }
  _exit(0);
}

static void do_as_asked(char **argv) {
  int status, what = asked;
  asked = 0;
  if (what == SIGUSR1) execute_anew(argv);
  if (what == SIGUSR2) fork_child();
  if (waitpid(-1, &status, WNOHANG) > 0) {
    printf("child ended with %d\n", status);
    fflush(stdout);
  }
}

int main(int argc, char **argv) {
  if (argc < 3) return 2;
  int storms = argc > 3 && !strcmp(argv[3], "storm"), is_anew = argc > 3 && !strcmp(argv[3], "anew");
  signal(SIGUSR1, ask);
  signal(SIGUSR2, ask);
  double rate = atof(argv[1]) * 1048576, max = atof(argv[2]) * 1048576, held = 0, began = now();
  puts("growing");
  fflush(stdout);
  for (;;) {
    double want = (now() - began) * rate;
    for (; held < want && held < max; held += PART) {
      is_anew ? keep_anew() : keep_session_parts();
      give_back();
    }
    do_as_asked(argv);
    if (storms)
      storm(now() + 0.005);
    else
      usleep(5000);
  }
}
