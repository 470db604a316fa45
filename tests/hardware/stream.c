/* STREAM-like: all threads copy (or read) big arrays together; prints the best pass's bytes read plus written a second. */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
static size_t n; static int threads; static double *a, *c; static double best, until; static pthread_barrier_t gate;
static double began[1024], ended[1024]; static volatile int stop;
static int reading;
static double now(void) { struct timespec t; clock_gettime(CLOCK_MONOTONIC, &t); return t.tv_sec + t.tv_nsec * 1e-9; }
static void *work(void *p) {
  size_t id = (size_t)p, from = n * id / threads, to = n * (id + 1) / threads;
  for (size_t i = from; i < to; i++) { a[i] = 1; c[i] = 0; }
  while (!stop) {
    pthread_barrier_wait(&gate);
    began[id] = now();
    __asm__ volatile("" : : : "memory");
    if (reading) { /* both arrays, as many bytes as the copy touches */
      unsigned long sum = 0;
      for (size_t i = from; i < to; i++) sum += ((unsigned long *)a)[i];
      for (size_t i = from; i < to; i++) sum += ((unsigned long *)c)[i];
      __asm__ volatile("" : : "r"(sum) : "memory"); /* or the compiler moves the loops out of the timed part */
    } else
      for (size_t i = from; i < to; i++) c[i] = a[i];
    ended[id] = now();
    pthread_barrier_wait(&gate);
    if (id == 0) {
      double first = began[0], last = ended[0];
      for (int t = 1; t < threads; t++) {
        if (began[t] < first) first = began[t];
        if (ended[t] > last) last = ended[t];
      }
      double rate = 2.0 * n * sizeof(double) / (last - first);
      if (rate > best) best = rate;
      stop = last > until;
    }
    pthread_barrier_wait(&gate);
  }
  return NULL;
}
int main(int argc, char **argv) { /* THREADS BYTES_AN_ARRAY copy|read */
  pthread_t handles[1024];
  threads = atoi(argv[1]); n = (size_t)atol(argv[2]) / sizeof(double);
  reading = argc == 4 && argv[3][0] == 'r';
  a = malloc(n * sizeof(double)); c = malloc(n * sizeof(double));
  pthread_barrier_init(&gate, NULL, threads);
  until = now() + 2;
  for (long i = 0; i < threads; i++) pthread_create(&handles[i], NULL, work, (void *)i);
  for (long i = 0; i < threads; i++) pthread_join(handles[i], NULL);
  printf("%.0f\n", best);
  return argc != 4;
}
