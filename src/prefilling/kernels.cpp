// Kernels for CPUs that torch has none of, or slow ones: causal attention within the segments of a line of tokens, RMS
// norms, rotary positions. Written with the vector types that GCC and Clang share, in as many lanes as the processor has;
// threads are OpenMP's, those of torch. Numbers are float32 or bfloat16; what is computed is computed in float32.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <new>
#if defined(__AVX512BF16__) && defined(__AVX512F__)
#include <immintrin.h>
#define HAS_PAIRS
#endif

#if defined(__AVX512F__)
constexpr int LANES = 16, ROWS = 8;  // 24 of 32 registers hold sums
#elif defined(__AVX__)
constexpr int LANES = 8, ROWS = 4;  // 12 of 16
#else
constexpr int LANES = 4, ROWS = 8;  // 24 of 32, with NEON
#endif
constexpr int VECTORS = 3;                // vectors of queries that a tile has side by side
constexpr int QUERIES = LANES * VECTORS;  // queries of a block
constexpr int KEYS = 64;                  // keys of a block: its scores stay in the first cache
constexpr int LINE = 64, AHEAD = 8;         // bytes of a cache line; keys lie so far apart that none is foreseen
constexpr float LOG2_E = 1.4426950408889634f;

typedef float Vec __attribute__((vector_size(4 * LANES)));
typedef int32_t Int __attribute__((vector_size(4 * LANES)));
typedef uint16_t Half __attribute__((vector_size(2 * LANES)));

struct bfloat16 {
    uint16_t bits;
};

static inline Vec splat(float x) { return Vec{} + x; }
static inline Int splat(int32_t x) { return Int{} + x; }

static inline float load(const float* p) { return *p; }
static inline float load(const bfloat16* p) {
    const uint32_t bits = uint32_t(p->bits) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}
static inline Vec load_vec(const float* p) {
    Vec x;
    std::memcpy(&x, p, sizeof x);
    return x;
}
static inline Vec load_vec(const bfloat16* p) {
    Half half;
    std::memcpy(&half, p, sizeof half);
    return (Vec)(__builtin_convertvector(half, Int) << 16);
}

static inline void store(float* p, float x) { *p = x; }
static inline void store(bfloat16* p, float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    // To nearest, ties to even, as torch rounds; a NaN stays one.
    p->bits = x != x ? 0x7fc0 : uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}
static inline void store_vec(float* p, Vec x) { std::memcpy(p, &x, sizeof x); }
static inline void store_vec(bfloat16* p, Vec x) {
    const Int bits = (Int)x, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const Half half = __builtin_convertvector(x != x ? splat(0x7fc0) : rounded, Half);
    std::memcpy(p, &half, sizeof half);
}

// 2 to the power of x, for x <= 0: below -126 nothing. The fraction goes through a polynomial of degree 6, fitted to 2^x
// over [-1/2, 1/2] for the least relative error; rounded, it is off by 8e-8 at most.
static inline Vec exp2_of(Vec x) {
    const Vec lowest = splat(-126.0f), magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to a whole number
    const Int tiny = x < lowest;
    x = tiny ? lowest : x;
    const Vec shifted = x + magic, rest = x - (shifted - magic);
    Vec p = splat(1.534581181e-4f);
    p = p * rest + 1.339993122e-3f;
    p = p * rest + 9.618488958e-3f;
    p = p * rest + 5.550328777e-2f;
    p = p * rest + 2.402264689e-1f;
    p = p * rest + 6.931472057e-1f;
    p = p * rest + 1.0f;
    const Vec found = (Vec)((Int)p + ((Int)shifted << 23));
    return tiny ? Vec{} : x != x ? x : found;
}

// a[0] b[0] a[1] b[1] ..., of the first halves of two vectors or (second) of the others.
template <bool SECOND>
static inline Vec interleave(Vec a, Vec b) {
    Int from;
    for (int l = 0; l < LANES; l++) from[l] = (SECOND ? LANES / 2 : 0) + l / 2 + (l % 2 ? LANES : 0);
#if defined(__clang__)
    Vec found;
    for (int l = 0; l < LANES; l++) found[l] = from[l] < LANES ? a[from[l]] : b[from[l] - LANES];
    return found;
#else
    return __builtin_shuffle(a, b, from);
#endif
}

// As many rows as a vector has lanes, transposed: halves are interleaved until every row has gone into every column.
static inline void transpose(Vec rows[LANES]) {
    for (int step = 1; step < LANES; step *= 2) {
        Vec next[LANES];
        for (int l = 0; l < LANES / 2; l++) {
            next[2 * l] = interleave<false>(rows[l], rows[l + LANES / 2]);
            next[2 * l + 1] = interleave<true>(rows[l], rows[l + LANES / 2]);
        }
        for (int l = 0; l < LANES; l++) rows[l] = next[l];
    }
}

// What products multiply: numbers one by one, or where the processor can, pairs of bfloat16, summed in float32.
static inline Vec times(Vec sum, float a, Vec b) { return sum + a * b; }
struct Numbers {
    typedef float Unit;
    static constexpr int IN_A_UNIT = 1;
    // One row of `dim` numbers, filled up with zeros to whole units.
    template <typename T>
    static void row(const T* from, Unit* to, int dim) {
        int d = 0;
        for (; d + LANES <= dim; d += LANES) store_vec(to + d, load_vec(from + d));
        for (; d < dim; d++) to[d] = load(from + d);
    }
    template <typename T>
    static void values(const T* from, int64_t stride, Unit* to, int keys, int dim) {
        for (int j = 0; j < keys; j++) row(from + j * stride, to + j * dim, dim);
    }
    static Vec weights(Vec first, Vec) { return first; }
};
#if defined(HAS_PAIRS)
static inline Vec times(Vec sum, uint32_t a, Vec b) {
    return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(int(a)), (__m512bh)b);
}
struct Pairs {
    typedef uint32_t Unit;
    static constexpr int IN_A_UNIT = 2;
    static void row(const bfloat16* from, Unit* to, int dim) {
        if (dim % 2) to[dim / 2] = from[dim - 1].bits;
        std::memcpy(to, from, sizeof(Unit) * (dim / 2));
    }
    // Of two keys side by side for each number; behind an odd number of keys zeros.
    static void values(const bfloat16* from, int64_t stride, Unit* to, int keys, int dim) {
        for (int j = 0; j < keys; j += 2, to += dim) {
            const bfloat16 *first = from + j * stride, *second = j + 1 < keys ? first + stride : nullptr;
            int d = 0;
            for (; second && d + LANES <= dim; d += LANES) {
                const Vec both = (Vec)(((Int)load_vec(first + d) >> 16 & 0xffff) | (Int)load_vec(second + d));
                std::memcpy(to + d, &both, sizeof both);
            }
            for (; d < dim; d++) to[d] = first[d].bits | (second ? uint32_t(second[d].bits) << 16 : 0);
        }
    }
    static Vec weights(Vec first, Vec second) {  // rounded; none is negative
        const Int low = ((Int)first + 0x8000) >> 16, high = ((Int)second + 0x8000) & int32_t(0xffff0000);
        return (Vec)((low & 0xffff) | high);
    }
};
template <typename T>
struct Operands : Numbers {};
template <>
struct Operands<bfloat16> : Pairs {};
#else
template <typename T>
struct Operands : Numbers {};
#endif

// c[m][u] = (ADD: itself +) the sum over i < k of a[m * a_row + i * a_column] * b[i][u], for M rows and U vectors.
template <int M, int U, bool ADD, typename Unit>
static inline void tile(const Unit* a, int64_t a_row, int64_t a_column, const Vec* b, Vec* c, int k) {
    Vec sums[M][U];
    for (int m = 0; m < M; m++)
        for (int u = 0; u < U; u++) sums[m][u] = ADD ? c[m * VECTORS + u] : Vec{};
    for (int i = 0; i < k; i++) {
        Vec row[U];
        for (int u = 0; u < U; u++) row[u] = b[i * VECTORS + u];
        for (int m = 0; m < M; m++)
            for (int u = 0; u < U; u++) sums[m][u] = times(sums[m][u], a[m * a_row + i * a_column], row[u]);
    }
    for (int m = 0; m < M; m++)
        for (int u = 0; u < U; u++) c[m * VECTORS + u] = sums[m][u];
}

template <int U, bool ADD, typename Unit>
static void product(const Unit* a, int64_t a_row, int64_t a_column, const Vec* b, Vec* c, int rows, int k) {
    int m = 0;
    for (; m + ROWS <= rows; m += ROWS)
        tile<ROWS, U, ADD>(a + m * a_row, a_row, a_column, b, c + m * VECTORS, k);
    for (; m < rows; m++) tile<1, U, ADD>(a + m * a_row, a_row, a_column, b, c + m * VECTORS, k);
}

template <bool ADD, typename Unit>
static void product(int vectors, const Unit* a, int64_t a_row, int64_t a_column, const Vec* b, Vec* c, int rows, int k) {
    if (vectors == 1) product<1, ADD>(a, a_row, a_column, b, c, rows, k);
    else if (vectors == 2) product<2, ADD>(a, a_row, a_column, b, c, rows, k);
    else product<3, ADD>(a, a_row, a_column, b, c, rows, k);
}

// What a thread works in. Queries lie in lanes: of everything there is a row of VECTORS vectors for each number or key.
// The arrays are as long as whole vectors of numbers need.
struct Scratch {
    Vec *queries, *found, *scores, *keys, *values;

    explicit Scratch(int dim) {
        const size_t whole = (dim + LANES - 1) / LANES * LANES, block = KEYS * whole / LANES;
        const size_t bytes = ((2 * whole + KEYS) * VECTORS + 2 * block) * sizeof(Vec);
        queries = (Vec*)std::aligned_alloc(64, (bytes + 63) / 64 * 64);
        if (!queries) throw std::bad_alloc();
        found = queries + whole * VECTORS;
        scores = found + whole * VECTORS;
        keys = scores + KEYS * VECTORS;
        values = keys + block;
    }
    ~Scratch() { std::free(queries); }
};

// Queries into lanes: [units][VECTORS] vectors of rows `stride` apart; lanes without a query are zero.
template <typename Op, typename T>
static void turn(const T* q, int64_t stride, int count, int dim, Vec* to) {
    const int units = (dim + Op::IN_A_UNIT - 1) / Op::IN_A_UNIT;
    for (int u = 0; u * LANES < count; u++)
        for (int from = 0; from < units; from += LANES) {
            Vec rows[LANES] = {};
            const int numbers = std::min(LANES * Op::IN_A_UNIT, dim - from * Op::IN_A_UNIT);
            for (int l = 0; l < LANES && u * LANES + l < count; l++)
                Op::row(q + (u * LANES + l) * stride + from * Op::IN_A_UNIT, (typename Op::Unit*)&rows[l], numbers);
            transpose(rows);
            for (int l = 0; l < LANES; l++) to[(from + l) * VECTORS + u] = rows[l];
        }
}

// Attention of `count` queries, the first of them the segment's `first`, in one head: keys are taken by blocks, with a
// running maximum and sum of their exponentials, as FlashAttention does it (arXiv 2205.14135, algorithm 1). Rows of q,
// k and v are `stride` apart, and those of out `out_stride`. `scale` is of powers of 2.
template <typename T>
static void attend_block(const T* q, const T* k, const T* v, T* out, int64_t stride, int64_t out_stride, int first,
                         int count, int dim, float scale, int window, Scratch& t) {
    typedef Operands<T> Op;
    typedef typename Op::Unit Unit;
    constexpr int EACH = Op::IN_A_UNIT;
    const int vectors = (count + LANES - 1) / LANES, units = (dim + EACH - 1) / EACH;
    turn<Op>(q, stride, count, dim, t.queries);
    std::memset(t.found, 0, sizeof(Vec) * dim * VECTORS);
    Vec largest[VECTORS], sum[VECTORS];
    for (int u = 0; u < VECTORS; u++) largest[u] = splat(-INFINITY), sum[u] = Vec{};
    Int lane;
    for (int i = 0; i < LANES; i++) lane[i] = i;
    Unit *keys = (Unit*)t.keys, *values = (Unit*)t.values;
    const int begin = window ? std::max(0, first - window + 1) : 0, end = first + count;
    for (int start = begin, stop; start < end; start = stop) {
        // Below the first query every key is before every query. From there on as many keys as a vector has lanes are
        // taken, and the vectors of queries that all lie before them are left out.
        const bool diagonal = start >= first;
        stop = diagonal ? std::min(end, start + LANES) : std::min(first, start + KEYS);
        const int n = stop - start, skipped = diagonal ? (start - first) / LANES : 0, used = vectors - skipped;
        const bool masked = diagonal || (window && end - 1 - start >= window);
        for (int j = 0; j < n; j++) {
            for (int d = 0; d < dim; d += LINE / int(sizeof(T))) {
                __builtin_prefetch(k + (start + j + AHEAD) * stride + d);
                __builtin_prefetch(v + (start + j) * stride + d);
            }
            Op::row(k + (start + j) * stride, keys + j * units, dim);
        }
        Op::values(v + start * stride, stride, values, n, dim);
        product<false>(used, keys, units, 1, t.queries + skipped, t.scores + skipped, n, units);
        for (int u = skipped; u < vectors; u++) {
            Vec now = largest[u];
            for (int j = 0; j < n; j++) {
                Vec score = t.scores[j * VECTORS + u];
                if (masked) {
                    const Int distance = lane + (first + u * LANES - start - j);
                    score = distance < 0 ? splat(-INFINITY) : score;
                    if (window) score = distance >= window ? splat(-INFINITY) : score;
                    t.scores[j * VECTORS + u] = score;
                }
                now = score > now ? score : now;
            }
            // Differences first: rounded products of large scores would not cancel. Zero: a query that has seen no key yet.
            const Vec base = now == -INFINITY ? Vec{} : now;
            const Vec shrink = exp2_of((largest[u] - base) * scale);
            Vec total = sum[u] * shrink;
            for (int j = 0; j < n; j += EACH) {
                Vec weights[2] = {};
                for (int i = 0; i < EACH && j + i < n; i++) {
                    weights[i] = exp2_of((t.scores[(j + i) * VECTORS + u] - base) * scale);
                    total += weights[i];
                }
                t.scores[j / EACH * VECTORS + u] = Op::weights(weights[0], weights[1]);
            }
            sum[u] = total;
            largest[u] = now;
            if (start > begin)
                for (int d = 0; d < dim; d++) t.found[d * VECTORS + u] *= shrink;
        }
        product<true>(used, values, 1, dim, t.scores + skipped, t.found + skipped, dim, (n + EACH - 1) / EACH);
    }
    for (int u = 0; u < vectors; u++) {
        const Vec by = 1.0f / sum[u];
        for (int from = 0; from < dim; from += LANES) {
            Vec rows[LANES] = {};
            const int numbers = std::min(LANES, dim - from);
            for (int l = 0; l < numbers; l++) rows[l] = t.found[(from + l) * VECTORS + u] * by;
            transpose(rows);
            for (int l = 0; l < LANES && u * LANES + l < count; l++) {
                T* to = out + (u * LANES + l) * out_stride + from;
                if (numbers == LANES) store_vec(to, rows[l]);
                else
                    for (int d = 0; d < numbers; d++) store(to + d, rows[l][d]);
            }
        }
    }
}

template <typename T>
static void attend(const T* qkv, T* out, const int32_t* blocks, int64_t count, int heads, int kv_heads, int dim,
                   float scale, int window) {
    const int64_t stride = int64_t(heads + 2 * kv_heads) * dim, out_stride = int64_t(heads) * dim;
#pragma omp parallel
    {
        Scratch scratch(dim);
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < count * heads; i++) {
            const int32_t* block = blocks + 3 * (i / heads);
            const int head = i % heads, shared = heads + head / (heads / kv_heads);
            const T* line = qkv + block[0] * stride;
            attend_block(line + block[1] * stride + head * dim, line + shared * dim, line + (shared + kv_heads) * dim,
                         out + (block[0] + block[1]) * out_stride + head * dim, stride, out_stride, block[1], block[2],
                         dim, scale * LOG2_E, window, scratch);
        }
    }
}

// x += y where there is a y; out = x / sqrt(mean of x squared + eps) * weight.
template <typename T>
static void rms(T* x, const T* y, const T* weight, T* out, int64_t rows, int64_t columns, int64_t x_stride, float eps) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        T *row = x + i * x_stride, *to = out + i * columns;
        const T* more = y ? y + i * columns : nullptr;
        Vec squares = {};
        float rest = 0.0f;
        int64_t d = 0;
        for (; d + LANES <= columns; d += LANES) {
            if (more) store_vec(row + d, load_vec(row + d) + load_vec(more + d));
            const Vec value = load_vec(row + d);
            squares += value * value;
        }
        for (; d < columns; d++) {
            if (more) store(row + d, load(row + d) + load(more + d));
            rest += load(row + d) * load(row + d);
        }
        for (int l = 0; l < LANES; l++) rest += squares[l];
        const float by = 1.0f / std::sqrt(rest / columns + eps);
        for (d = 0; d + LANES <= columns; d += LANES)
            store_vec(to + d, load_vec(row + d) * by * load_vec(weight + d));
        for (; d < columns; d++) store(to + d, load(row + d) * by * load(weight + d));
    }
}

// Rotary positions in place: the two halves of each of the first `heads` heads of a row, turned by the row's angles.
template <typename T>
static void rotate(T* x, const T* cos, const T* sin, int64_t rows, int64_t stride, int heads, int half,
                   int64_t angle_stride) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < rows; i++) {
        const T *c = cos + i * angle_stride, *s = sin + i * angle_stride;
        for (int head = 0; head < heads; head++) {
            T *first = x + i * stride + int64_t(head) * 2 * half, *second = first + half;
            int d = 0;
            for (; d + LANES <= half; d += LANES) {
                const Vec a = load_vec(first + d), b = load_vec(second + d), cs = load_vec(c + d), sn = load_vec(s + d);
                store_vec(first + d, a * cs - b * sn);
                store_vec(second + d, b * cs + a * sn);
            }
            for (; d < half; d++) {
                const float a = load(first + d), b = load(second + d), cs = load(c + d), sn = load(s + d);
                store(first + d, a * cs - b * sn);
                store(second + d, b * cs + a * sn);
            }
        }
    }
}

#define KERNELS_OF(T, NAME)                                                                                          \
    extern "C" void attend_##NAME(const T* qkv, T* out, const int32_t* blocks, int64_t count, int heads,            \
                                  int kv_heads, int dim, float scale, int window) {                                 \
        attend(qkv, out, blocks, count, heads, kv_heads, dim, scale, window);                                       \
    }                                                                                                                \
    extern "C" void rms_##NAME(T* x, const T* y, const T* weight, T* out, int64_t rows, int64_t columns,            \
                               int64_t x_stride, float eps) {                                                       \
        rms(x, y, weight, out, rows, columns, x_stride, eps);                                                       \
    }                                                                                                                \
    extern "C" void rotate_##NAME(T* x, const T* cos, const T* sin, int64_t rows, int64_t stride, int heads,        \
                                  int half, int64_t angle_stride) {                                                 \
        rotate(x, cos, sin, rows, stride, heads, half, angle_stride);                                               \
    }

KERNELS_OF(float, float32)
KERNELS_OF(bfloat16, bfloat16)

extern "C" int queries_of_a_block() { return QUERIES; }
