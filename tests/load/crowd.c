// Starts COUNT processes that sleep until this one ends.
// crowd COUNT
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <unistd.h>

int main(int argc, char **argv) {
  if (argc != 2) return 2;
  int count = atoi(argv[1]);
  pid_t parent = getpid();
  for (int i = 0; i < count; i++) {
    pid_t child = fork();
    if (child < 0) {
      perror("fork");
      return 3;
    }
    if (child == 0) {
      prctl(PR_SET_PDEATHSIG, SIGKILL);
      if (getppid() == parent) pause();
      _exit(0);
    }
  }
  puts("crowded");
  fflush(stdout);
  char byte;
  return (int)read(0, &byte, 1);
}
