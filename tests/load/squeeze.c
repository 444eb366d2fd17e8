// Runs into the limit of its memory cgroup in two steps: first with written file pages, which are reclaimed when the disk
// has them, then, at a line on its input, with anonymous memory, which is not, until it is killed.
// squeeze FILE MIB
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

enum { STEP = 1 << 20 };

static void write_file(const char *path, int mib) {
  static char buffer[STEP];
  int file = open(path, O_WRONLY | O_CREAT, 0600);
  if (file < 0) exit(3);
  for (int i = 0; i < mib; i++)
    if (write(file, buffer, STEP) != STEP) exit(5);
  // Pages that the disk does not have yet could not give way to the memory that comes next.
  if (fsync(file)) exit(6);
  close(file);
}

__attribute__((noinline)) void hold_more(void) {
  char *part = mmap(0, STEP, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (part == MAP_FAILED) exit(4);
  for (int i = 0; i < STEP; i += 4096) part[i] = 1;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  char line[16];
  write_file(argv[1], atoi(argv[2]));
  puts("reclaimed");
  fflush(stdout);
  if (!fgets(line, sizeof line, stdin)) return 0;
  for (;;) hold_more();
}
