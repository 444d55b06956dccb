/* The benchmark's guest: one process with much memory, many with little. Says "ready" on the second serial line. */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#define NR_SMALL 150
#define SMALL (256UL << 10)
#define LARGE (1200UL << 20)

static int filled[2];

/* Words that a codec halves, different on every page. */
static void fill(char *at, unsigned long size, uint64_t seed)
{
	for (unsigned long i = 0; i < size; i += 8) {
		seed = seed * 6364136223846793005UL + 1442695040888963407UL;
		uint64_t word = (seed >> 33) & 0x0f0f0f0f;
		memcpy(at + i, &word, 8);
	}
}

static void child(const char *name, unsigned long bytes, uint64_t seed)
{
	char *at;

	if (fork())
		return;
	prctl(PR_SET_NAME, name);
	at = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED || (fill(at, bytes, seed), write(filled[1], "", 1)) != 1)
		_exit(1);
	for (;;)
		pause();
}

int main(void)
{
	struct termios mode;
	char name[16], byte;
	int module, line;

	mkdir("/dev", 0755);
	mount("dev", "/dev", "devtmpfs", 0, NULL);
	module = open("/qemu_fw_cfg.ko", O_RDONLY);
	if (syscall(SYS_finit_module, module, "", 0) || pipe(filled))
		perror("init");
	for (int i = 0; i < NR_SMALL; i++) {
		snprintf(name, sizeof(name), "small-%d", i);
		child(name, SMALL, i + 1);
	}
	child("large", LARGE, NR_SMALL + 1);
	for (int i = 0; i <= NR_SMALL; i++)
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
