/* Keep what a loss of power would leave of a folder: only what was synced.
 *
 * Preloaded into a process. Every fsync or fdatasync below $POWERCUT_ROOT is noted in
 * $POWERCUT_STORE: of a file its content, of a folder its names. Files and folders are told apart by
 * inode and time of birth, as inodes are used again. The journal is a line each:
 *   N id kind folder name   the name of what is synced, and of each folder above it; kind is f or d
 *   D id                    a folder is synced, and these are its names
 *   E id kind name          ... one of them
 * The content of a file is in the file of its id. Several processes may sync one file at the same
 * time, a server and whoever reads its file: they take turns, so that the newest content stays.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LONGEST = PATH_MAX + 256 };

/* The process's log tells what could not be kept. */
static void give_up(const char *what) {
  fprintf(stderr, "powercut: %s: %s\n", what, strerror(errno));
  abort();
}

/* A handle of its own for each turn: threads and processes wait for each other alike. */
static int begin_turn(const char *store) {
  char path[LONGEST];
  snprintf(path, sizeof path, "%s/turns", store);
  int turn = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (turn < 0) give_up("open turns");
  while (flock(turn, LOCK_EX))
    if (errno != EINTR) give_up("flock");
  return turn;
}

/* Closing alone would not do: a child that was forked meanwhile has the handle too. */
static void end_turn(int turn) {
  flock(turn, LOCK_UN);
  close(turn);
}

static void identify(const char *path, char *id, size_t size) {
  struct statx found;
  if (statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_INO | STATX_BTIME, &found)) {
    snprintf(id, size, "0");
    return;
  }
  snprintf(id, size, "%llu.%lld.%u", (unsigned long long)found.stx_ino,
           (long long)found.stx_btime.tv_sec, found.stx_btime.tv_nsec);
}

static void copy_content(int fd, const char *store, const char *id) {
  char from[64], to[LONGEST], part[LONGEST + 8], block[65536];
  ssize_t n;
  snprintf(from, sizeof from, "/proc/self/fd/%d", fd);
  snprintf(to, sizeof to, "%s/%s", store, id);
  snprintf(part, sizeof part, "%s.part", to);
  int in = open(from, O_RDONLY | O_CLOEXEC);
  int out = open(part, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
  if (in < 0 || out < 0) give_up("open content");
  while ((n = read(in, block, sizeof block)) > 0)
    if (write(out, block, n) != n) give_up("write content");
  if (n < 0) give_up("read content");
  close(in);
  close(out);
  if (rename(part, to)) give_up("rename content");
}

static void add_names(FILE *lines, const char *path) {
  char below[LONGEST], id[80];
  DIR *folder = opendir(path);
  struct dirent *entry;
  if (!folder) return;
  while ((entry = readdir(folder))) {
    if (!strcmp(entry->d_name, ".") || !strcmp(entry->d_name, "..")) continue;
    snprintf(below, sizeof below, "%s/%s", path, entry->d_name);
    identify(below, id, sizeof id);
    fprintf(lines, "E %s %c %s\n", id, entry->d_type == DT_DIR ? 'd' : 'f', entry->d_name);
  }
  closedir(folder);
}

/* The names of a path and of the folders above it, up to the root. */
static void add_path(FILE *lines, const char *path, const char *root, char kind) {
  char above[PATH_MAX], id[80], id_above[80];
  if (!strcmp(path, root)) return;
  snprintf(above, sizeof above, "%s", path);
  char *slash = strrchr(above, '/');
  *slash = 0;
  add_path(lines, above, root, 'd');
  identify(path, id, sizeof id);
  identify(above, id_above, sizeof id_above);
  fprintf(lines, "N %s %c %s %s\n", id, kind, id_above, slash + 1);
}

static void add_to_journal(const char *store, const char *text, size_t size) {
  char path[LONGEST];
  snprintf(path, sizeof path, "%s/journal", store);
  int journal = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
  if (journal < 0 || write(journal, text, size) != (ssize_t)size)
    give_up("write journal");
  close(journal);
}

static void note(int fd) {
  const char *root = getenv("POWERCUT_ROOT"), *store = getenv("POWERCUT_STORE");
  char link[64], path[PATH_MAX], id[80], *text = NULL;
  struct stat found;
  size_t size = 0;
  if (!root || !store) return;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return;
  path[length] = 0;
  size_t under = strlen(root);
  if (strncmp(path, root, under) || (path[under] && path[under] != '/')) return;
  if (fstat(fd, &found)) return;
  int is_folder = S_ISDIR(found.st_mode), turn = begin_turn(store);
  FILE *lines = open_memstream(&text, &size);
  add_path(lines, path, root, is_folder ? 'd' : 'f');
  identify(path, id, sizeof id);
  if (is_folder) {
    fprintf(lines, "D %s\n", id);
    add_names(lines, path);
  } else {
    copy_content(fd, store, id);
  }
  fclose(lines);
  add_to_journal(store, text, size);
  free(text);
  end_turn(turn);
}

int fsync(int fd) {
  note(fd);
  return 0;
}

int fdatasync(int fd) { return fsync(fd); }
