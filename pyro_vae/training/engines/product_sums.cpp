// out = sum of a[i]^T b[i] over the parts i, as a binary tree, one tile of `out` after the other.
//
// What a tile's tree adds up lies in the cache of the core that computes it, and the cores share out the tiles. Matrices lie row
// by row; a BLAS takes them column by column, and so is asked for the transpose, b[i]^T a[i]. It is torch's own.

#include <algorithm>
#include <cstdlib>
#include <memory>

extern "C" {
void sgemm_(const char*, const char*, const int*, const int*, const int*, const float*, const float*, const int*,
            const float*, const int*, const float*, float*, const int*);
void dgemm_(const char*, const char*, const int*, const int*, const int*, const double*, const double*, const int*,
            const double*, const int*, const double*, double*, const int*);
}

namespace {

struct Sizes {
  long parts;        // a power of two
  int m, p, q;       // a[i] is (m, p), b[i] is (m, q)
  int rows, columns; // of a tile
  int within;        // a last pair is added up within its second product: where that rounds as a product that is then added
};

auto gemm(float) { return sgemm_; }
auto gemm(double) { return dgemm_; }

template <typename T> struct Tile {
  const Sizes& of;
  int rows, columns;

  // c = a^T b, or, with `kept` 1, c += a^T b
  void product(const T* a, const T* b, T* c, int c_row, T kept) const {
    const T one = 1;
    gemm(T())("N", "T", &columns, &rows, &of.m, &one, b, &of.q, a, &of.p, &kept, c, &c_row);
  }

  // c = the tree of `count` parts; each level of it takes a tile of `spare`
  void tree(const T* a, const T* b, long count, T* c, int c_row, T* spare) const {
    const long half = count / 2, left = half * of.m * of.p, right = half * of.m * of.q;
    if (count == 1) return product(a, b, c, c_row, 0);
    if (count == 2 && of.within) {
      product(a, b, c, c_row, 0);
      return product(a + left, b + right, c, c_row, 1);
    }
    tree(a, b, half, c, c_row, spare);
    tree(a + left, b + right, half, spare, columns, spare + long(rows) * columns);
    for (int i = 0; i < rows; i++) {
      T* sum = c + long(i) * c_row;
      const T* added = spare + long(i) * columns;
#pragma omp simd
      for (int j = 0; j < columns; j++) sum[j] += added[j];
    }
  }
};

template <typename T> void sum(const T* a, const T* b, T* out, const Sizes& of) {
  const int down = (of.p + of.rows - 1) / of.rows, across = (of.q + of.columns - 1) / of.columns;
  long levels = 0;
  while (((of.within ? 4L : 2L) << levels) <= of.parts) levels++;
#pragma omp parallel
  {
    // a register's width divides a row's, and so each row begins where one does
    const size_t bytes = sizeof(T) * levels * of.rows * of.columns;
    const std::unique_ptr<void, decltype(&std::free)> spare(bytes ? std::aligned_alloc(64, bytes) : nullptr, &std::free);
#pragma omp for schedule(dynamic)
    for (int t = 0; t < down * across; t++) {
      const int i = t / across * of.rows, j = t % across * of.columns;
      const Tile<T> tile{of, std::min(of.rows, of.p - i), std::min(of.columns, of.q - j)};
      tile.tree(a + i, b + j, of.parts, out + long(i) * of.q + j, of.q, static_cast<T*>(spare.get()));
    }
  }
}

}  // namespace

extern "C" void sum_float32(const float* a, const float* b, float* out, long parts, int m, int p, int q, int rows, int columns,
                            int within) {
  sum(a, b, out, Sizes{parts, m, p, q, rows, columns, within});
}

extern "C" void sum_float64(const double* a, const double* b, double* out, long parts, int m, int p, int q, int rows, int columns,
                            int within) {
  sum(a, b, out, Sizes{parts, m, p, q, rows, columns, within});
}
