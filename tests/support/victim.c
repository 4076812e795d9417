// SPDX-License-Identifier: GPL-2.0-or-later
/*
 * A process that knows what it should be: at every turn it puts known values
 * into its registers, waits in a system call, and checks that each came back,
 * and that its signal mask did. It counts its turns in a shared file, whose
 * second word becomes non-zero at the first thing that is not as it was.
 *
 * usage: victim FILE sleep|poll|spin
 */
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define SPIN_TURNS 200000

struct state {
	volatile uint64_t turns;
	volatile uint64_t broken; /* 1: integer, 2: vector, 3: mask, 4: result */
};

struct call {
	long number, a, b, c, d, e;
};

static uint64_t integers[8];
/* Named in the assembly, by which the registers stay free. */
uint64_t victim_got[4];
uint8_t victim_in[16][32] __attribute__((aligned(32)));
uint8_t victim_out[16][32] __attribute__((aligned(32)));

#define LOAD(n)	 "vmovdqa victim_in+" #n "*32(%%rip), %%ymm" #n "\n\t"
#define STORE(n) "vmovdqa %%ymm" #n ", victim_out+" #n "*32(%%rip)\n\t"
#define ALL(x) x(0) x(1) x(2) x(3) x(4) x(5) x(6) x(7) x(8) x(9) x(10) x(11) x(12) x(13) x(14) x(15)

/* All vector registers live across the call, and integer registers, too. */
static long careful_call(const struct call *call)
{
	register long r10 __asm__("r10") = call->d;
	register long r8 __asm__("r8") = call->e;
	long result = call->number;

	__asm__ volatile(ALL(LOAD) "mov $0x1111, %%r12\n\t"
				   "mov $0x2222, %%r13\n\t"
				   "mov $0x3333, %%r14\n\t"
				   "mov $0x4444, %%r15\n\t"
				   "syscall\n\t"
				   "mov %%r12, victim_got(%%rip)\n\t"
				   "mov %%r13, victim_got+8(%%rip)\n\t"
				   "mov %%r14, victim_got+16(%%rip)\n\t"
				   "mov %%r15, victim_got+24(%%rip)\n\t" ALL(STORE)
			 : "+a"(result)
			 : "D"(call->a), "S"(call->b), "d"(call->c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "r12", "r13", "r14", "r15", "memory", "xmm0", "xmm1",
			   "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10",
			   "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
	for (uint64_t i = 0; i < 4; i++)
		integers[i] = victim_got[i] ^ (0x1111 * (i + 1));
	return result;
}

/* A user-mode stretch: interrupted here, there is no call to restart. */
static void spin(void)
{
	uint64_t a = 0, b = 0;

	for (uint64_t i = 0; i < SPIN_TURNS; i++) {
		__asm__ volatile("add $1, %0\n\tadd $3, %1" : "+r"(a), "+r"(b));
	}
	integers[4] = a ^ SPIN_TURNS;
	integers[5] = b ^ (3 * SPIN_TURNS);
}

int main(int argc, char **argv)
{
	struct timespec_like {
		long seconds, nanoseconds;
	} pause;
	int fd = argc == 3 ? open(argv[1], O_RDWR | O_CLOEXEC) : -1;
	struct state *state;
	sigset_t mask, now;

	if (fd < 0)
		return 1;
	state = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	sigemptyset(&mask);
	sigaddset(&mask, SIGUSR2);
	sigprocmask(SIG_SETMASK, &mask, NULL);
	for (int i = 0; i < 16; i++)
		memset(victim_in[i], 0x10 + i, sizeof(victim_in[i]));
	while (!state->broken) {
		struct call nap = {SYS_nanosleep, (long)&pause, (long)&pause, 0, 0, 0};
		struct call poll = {SYS_ppoll, 0, 0, (long)&pause, 0, 8};
		long result = 0;

		pause = (struct timespec_like){0, 3000000};
		if (argv[2][0] == 'p')
			result = careful_call(&poll);
		else if (argv[2][1] == 'l')
			result = careful_call(&nap);
		else
			spin();
		/* A tracer that dies ends a nanosleep as a signal does: EINTR. */
		if (result && result != -4)
			state->broken = 4;
		for (int i = 0; i < 8; i++)
			if (integers[i])
				state->broken = 1;
		if (argv[2][1] != 'p' && memcmp(victim_in, victim_out, sizeof(victim_in)))
			state->broken = 2;
		sigprocmask(SIG_SETMASK, NULL, &now);
		if (memcmp(&now, &mask, 8))
			state->broken = 3;
		state->turns++;
	}
	return 2;
}
