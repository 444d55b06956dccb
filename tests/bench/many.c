/* The benchmark's second guest: much of what there is one of in most: tasks, mappings, threads. Says "ready" as init.c. */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#define PAGE 4096L
#define NR_SMALL 1000
#define FILE_PAGES 256

static const int nr_mappings[] = {1000, 4000, 16000, 64000}, nr_threads[] = {100, 1250, 2500, 5000};
static int filled[2];

static void done(void)
{
	if (write(filled[1], "", 1) != 1)
		_exit(1);
	for (;;)
		pause();
}

static int is_child(const char *kind, int number)
{
	char name[16];

	if (fork())
		return 0;
	snprintf(name, sizeof(name), "%s-%d", kind, number);
	prctl(PR_SET_NAME, name);
	return 1;
}

/* Neighbours differ in what they allow, so that the kernel does not make one of them; each fourth is of a file. */
static void mappings(int count)
{
	int file = open("/file", O_RDONLY);

	for (int i = 0; i < count; i++) {
		int prot = PROT_READ | (i % 4 == 3 ? i & 4 ? PROT_EXEC : 0 : PROT_WRITE | (i & 1 ? 0 : PROT_EXEC));
		int flags = MAP_PRIVATE | (i % 4 == 3 ? 0 : MAP_ANONYMOUS);
		volatile char *at = mmap(NULL, 2 * PAGE, prot, flags, i % 4 == 3 ? file : -1,
					 i % 4 == 3 ? i * 7 % (FILE_PAGES - 2) * PAGE : 0);

		if (at == MAP_FAILED)
			_exit(1);
		if (i % 4 == 3)
			(void)*at;
		else
			*at = 1;
	}
	done();
}

static void *idle(void *unused)
{
	for (;;)
		pause();
	return unused;
}

static void threads(int count)
{
	pthread_attr_t small;
	pthread_t thread;

	pthread_attr_init(&small);
	pthread_attr_setstacksize(&small, 8 * PAGE);
	for (int i = 1; i < count; i++)
		if (pthread_create(&thread, &small, idle, NULL))
			_exit(1);
	sleep(2);
	done();
}

static void set(const char *path, const char *value)
{
	int file = open(path, O_WRONLY);

	if (write(file, value, strlen(value)) < 0)
		perror(path);
	close(file);
}

int main(void)
{
	struct termios mode;
	char page[PAGE], byte;
	int file, line, count = 0;

	mkdir("/dev", 0755);
	mkdir("/proc", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	mount("proc", "/proc", "proc", 0, NULL);
	set("/proc/sys/vm/max_map_count", "80000");
	set("/proc/sys/kernel/threads-max", "30000");
	file = open("/qemu_fw_cfg.ko", O_RDONLY);
	if (syscall(SYS_finit_module, file, "", 0) || pipe(filled))
		perror("init");
	file = open("/file", O_RDWR | O_CREAT, 0755);
	for (int i = 0; i < FILE_PAGES; i++)
		if (write(file, memset(page, i, PAGE), PAGE) != PAGE)
			perror("/file");
	for (int i = 0; i < 4; i++, count += 2) {
		if (is_child("map", nr_mappings[i]))
			mappings(nr_mappings[i]);
		if (is_child("thr", nr_threads[i]))
			threads(nr_threads[i]);
	}
	for (int i = 0; i < NR_SMALL; i++, count++)
		if (is_child("small", i)) {
			memset(malloc(16 * PAGE), i, 16 * PAGE);
			done();
		}
	for (int i = 0; i < count; i++)
		if (read(filled[0], &byte, 1) != 1)
			perror("init");
	line = open("/dev/ttyS1", O_RDWR | O_NOCTTY);
	tcgetattr(line, &mode);
	cfmakeraw(&mode);
	tcsetattr(line, TCSANOW, &mode);
	if (write(line, "ready\n", 6) != 6)
		perror("init");
	for (;;)
		pause();
}
