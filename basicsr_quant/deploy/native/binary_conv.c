/* Convolution of signs with signs, 3x3 and 1x1: 64 channels in a word, products as XOR, sums as counts of bits.
 *
 * An image is kept as [H + 2 pad][W + 2 pad][words] with a border of zeros. With nothing but -1 and +1 a sum is
 * base - 2 count(a ^ w), where base holds the number of products and, per border class, the weights of taps outside.
 * As soon as one activation or weight is zero, a second image of bits says which count (ternary). */
#include "common.h"

enum { SIGN_ZERO = 0, SIGN_PLUS_ONE = 1, STEP = 2 };
#define GROUP 8
#define WIDE 4
#define PIXELS 4
#define SEGMENT 128

/* What is done with a sum y: y * scale + bias, then identity, PReLU(y + shift_in) + shift_out, or in the other order.
 * Every pointer may be NULL; identity is an image of the output's shape. */
typedef struct {
    const float *scale, *bias, *shift_in, *slope, *shift_out, *identity;
    int32_t identity_first;
} Unit;

typedef struct {
    int64_t batch, height, width, channels, outputs, kernel;
} Shape;

INLINE int64_t words_of(const Shape *shape) { return (shape->channels + 63) / 64; }

/* One pixel's bits: set where the value is +1, and where it is not zero. Returns whether a value is zero. */
INLINE int pack_pixel(const float *x, const float *shift, int64_t channels, int activation, uint64_t *bits,
                      uint64_t *mask) {
    uint64_t missing = 0;
    for (int64_t first = 0; first < channels; first += 64) {
        const int64_t count = channels - first < 64 ? channels - first : 64;
        uint64_t positive = 0, zero = 0;
#ifdef __AVX512F__
        for (int64_t part = 0; part < count; part += LANES) {
            const __mmask16 present = first_lanes(count - part);
            __m512 value = _mm512_maskz_loadu_ps(present, x + first + part);
            if (shift) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(present, shift + first + part));
            __mmask16 above, equal = 0;
            if (activation == STEP) {
                above = _mm512_mask_cmp_ps_mask(present, value, _mm512_set1_ps(0.5f), _CMP_GT_OQ);
                equal = present & (__mmask16)~above;
            } else if (activation == SIGN_PLUS_ONE) {
                above = _mm512_mask_cmp_ps_mask(present, value, _mm512_setzero_ps(), _CMP_GE_OQ);
            } else {
                above = _mm512_mask_cmp_ps_mask(present, value, _mm512_setzero_ps(), _CMP_GT_OQ);
                equal = _mm512_mask_cmp_ps_mask(present, value, _mm512_setzero_ps(), _CMP_EQ_OQ);
            }
            positive |= (uint64_t)above << part;
            zero |= (uint64_t)equal << part;
        }
#else
        for (int64_t i = 0; i < count; i++) {
            const float value = shift ? x[first + i] + shift[first + i] : x[first + i];
            const int above = activation == STEP ? value > 0.5f : activation == SIGN_PLUS_ONE ? value >= 0 : value > 0;
            const int equal = activation == STEP ? !above : activation == SIGN_PLUS_ONE ? 0 : value == 0;
            positive |= (uint64_t)above << i;
            zero |= (uint64_t)equal << i;
        }
#endif
        bits[first / 64] = positive;
        if (mask) mask[first / 64] = ~zero & (count == 64 ? ~0ull : (1ull << count) - 1);
        missing |= zero;
    }
    return missing != 0;
}

/* The whole image; returns whether a value is zero. */
static int pack(const float *x, const float *shift, const Shape *shape, int activation, uint64_t *bits, uint64_t *mask,
                int threads) {
    const int64_t pad = shape->kernel / 2, words = words_of(shape), rows = shape->height + 2 * pad;
    const int64_t row = (shape->width + 2 * pad) * words;
    int zeros = 0;
    PARALLEL(omp parallel for num_threads(threads) reduction(| : zeros) if (threads > 1))
    for (int64_t line = 0; line < shape->batch * rows; line++) {
        const int64_t y = line % rows - pad, image = line / rows;
        uint64_t *own = bits + line * row, *own_mask = mask ? mask + line * row : NULL;
        if (y < 0 || y >= shape->height) {
            memset(own, 0, row * sizeof(uint64_t));
            if (mask) memset(own_mask, 0, row * sizeof(uint64_t));
            continue;
        }
        for (int64_t i = 0; i < pad * words; i++) {
            own[i] = own[row - 1 - i] = 0;
            if (mask) own_mask[i] = own_mask[row - 1 - i] = 0;
        }
        const float *source = x + (image * shape->height + y) * shape->width * shape->channels;
        for (int64_t column = 0; column < shape->width; column++) {
            const int64_t at = (column + pad) * words;
            zeros |= pack_pixel(source + column * shape->channels, shift, shape->channels, activation, own + at,
                                mask ? own_mask + at : NULL);
        }
    }
    return zeros;
}

/* Write GROUP or fewer outputs of a pixel. */
#ifdef __AVX512VPOPCNTDQ__
INLINE void finish(__m256i sums, int64_t first, int64_t count, const Unit *unit, const float *identity, float *y,
                   const int full) {
    const __mmask8 present = full || count >= GROUP ? 0xff : (__mmask8)((1u << count) - 1);
#define LOAD(pointer) \
    (full ? _mm256_loadu_ps((pointer) + first) : _mm256_maskz_loadu_ps(present, (pointer) + first))
    __m256 value = _mm256_cvtepi32_ps(sums);
    if (unit->scale) value = _mm256_mul_ps(value, LOAD(unit->scale));
    if (unit->bias) value = _mm256_add_ps(value, LOAD(unit->bias));
    if (identity && unit->identity_first) value = _mm256_add_ps(value, LOAD(identity));
    if (unit->slope) {
        value = _mm256_add_ps(value, LOAD(unit->shift_in));
        const __mmask8 negative = _mm256_cmp_ps_mask(value, _mm256_setzero_ps(), _CMP_NGT_UQ);
        value = _mm256_mask_mul_ps(value, negative, value, LOAD(unit->slope));
        value = _mm256_add_ps(value, LOAD(unit->shift_out));
    }
    if (identity && !unit->identity_first) value = _mm256_add_ps(value, LOAD(identity));
    if (full)
        _mm256_storeu_ps(y + first, value);
    else
        _mm256_mask_storeu_ps(y + first, present, value);
#undef LOAD
}
#else
INLINE void finish(const int32_t *sums, int64_t first, int64_t count, const Unit *unit, const float *identity,
                   float *y) {
    for (int64_t i = 0; i < count && i < GROUP; i++) {
        const int64_t o = first + i;
        float value = (float)sums[i];
        if (unit->scale) value *= unit->scale[o];
        if (unit->bias) value += unit->bias[o];
        if (identity && unit->identity_first) value += identity[o];
        if (unit->slope) {
            value += unit->shift_in[o];
            value = (value > 0 ? value : value * unit->slope[o]) + unit->shift_out[o];
        }
        if (identity && !unit->identity_first) value += identity[o];
        y[o] = value;
    }
}
#endif

#ifdef __AVX512VPOPCNTDQ__
typedef __m256i Sums;
#else
typedef struct {
    int32_t of[GROUP];
} Sums;
#endif

/* Counts of `groups` times GROUP outputs at `pixels` neighbouring pixels. `a` and `mask` begin at the first tap. */
INLINE void count_tile(const uint64_t *a, const uint64_t *mask, const uint64_t *w, const uint64_t *w_mask, int64_t row,
                       int64_t kernel, int64_t words, const int pixels, const int groups, const int ternary,
                       Sums sums[PIXELS][WIDE]) {
    const int64_t run = kernel * words, block = kernel * run * GROUP;
#ifdef __AVX512VPOPCNTDQ__
    __m512i total[PIXELS][WIDE];
#pragma GCC unroll 4
    for (int p = 0; p < pixels; p++)
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++) total[p][g] = _mm512_setzero_si512();
    for (int64_t dy = 0; dy < kernel; dy++) {
        for (int64_t i = 0; i < run; i++) {
            const int64_t at = (dy * run + i) * GROUP, from = dy * row + i;
            __m512i weight[WIDE];
#pragma GCC unroll 4
            for (int g = 0; g < groups; g++) weight[g] = _mm512_loadu_si512(w + g * block + at);
#pragma GCC unroll 4
            for (int p = 0; p < pixels; p++) {
                const __m512i value = _mm512_set1_epi64((int64_t)a[from + p * words]);
#pragma GCC unroll 4
                for (int g = 0; g < groups; g++) {
                    if (!ternary) {
                        const __m512i unlike = _mm512_xor_si512(value, weight[g]);
                        total[p][g] = _mm512_add_epi64(total[p][g], _mm512_popcnt_epi64(unlike));
                        continue;
                    }
                    __m512i counts = _mm512_set1_epi64((int64_t)mask[from + p * words]);
                    if (w_mask) counts = _mm512_and_si512(counts, _mm512_loadu_si512(w_mask + g * block + at));
                    const __m512i unlike = _mm512_ternarylogic_epi64(value, weight[g], counts, 0x28);
                    const __m512i like = _mm512_ternarylogic_epi64(value, weight[g], counts, 0x82);
                    total[p][g] = _mm512_add_epi64(total[p][g], _mm512_popcnt_epi64(like));
                    total[p][g] = _mm512_sub_epi64(total[p][g], _mm512_popcnt_epi64(unlike));
                }
            }
        }
    }
#pragma GCC unroll 4
    for (int p = 0; p < pixels; p++)
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++)
            sums[p][g] = _mm512_cvtepi64_epi32(total[p][g]);
#else
    for (int p = 0; p < pixels; p++) {
        for (int g = 0; g < groups; g++) {
            int32_t total[GROUP] = {0};
            for (int64_t dy = 0; dy < kernel; dy++) {
                for (int64_t i = 0; i < run; i++) {
                    const int64_t at = g * block + (dy * run + i) * GROUP, from = dy * row + i + p * words;
                    for (int o = 0; o < GROUP; o++) {
                        const uint64_t unlike = a[from] ^ w[at + o];
                        if (!ternary) {
                            total[o] += __builtin_popcountll(unlike);
                            continue;
                        }
                        const uint64_t counts = w_mask ? mask[from] & w_mask[at + o] : mask[from];
                        total[o] += __builtin_popcountll(counts) - 2 * __builtin_popcountll(unlike & counts);
                    }
                }
            }
            memcpy(sums[p][g].of, total, sizeof total);
        }
    }
#endif
}

typedef struct {
    const uint64_t *a, *mask, *w, *w_mask;
    const int32_t *base;
    Unit unit;
    float *y;
    int64_t row;
} Work;

INLINE void tile(const Work *work, const Shape *shape, int64_t image, int64_t y, int64_t x, int64_t group,
                 const int64_t kernel, const int64_t words, const int pixels, const int groups, const int full,
                 const int ternary) {
    const int64_t pad = kernel / 2;
    const int64_t from = (image * (shape->height + 2 * pad) + y) * work->row + x * words;
    const int64_t block = group * kernel * kernel * words * GROUP;
    const int64_t padded = (shape->outputs + GROUP - 1) / GROUP * GROUP;
    Sums sums[PIXELS][WIDE];
    count_tile(work->a + from, ternary ? work->mask + from : NULL, work->w + block,
               work->w_mask ? work->w_mask + block : NULL, work->row, kernel, words, pixels, groups, ternary, sums);
    const int vertical = pad ? (y == 0) | (y == shape->height - 1) << 1 : 0;
#pragma GCC unroll 4
    for (int p = 0; p < pixels; p++) {
        const int horizontal = pad ? (x + p == 0) | (x + p == shape->width - 1) << 1 : 0;
        const int32_t *base = work->base + (vertical * 4 + horizontal) * padded;
        const int64_t at = ((image * shape->height + y) * shape->width + x + p) * shape->outputs;
        const float *identity = work->unit.identity ? work->unit.identity + at : NULL;
#pragma GCC unroll 4
        for (int g = 0; g < groups; g++) {
            const int64_t first = (group + g) * GROUP;
#ifdef __AVX512VPOPCNTDQ__
            const __m256i all = _mm256_loadu_si256((const __m256i *)(base + first));
            const __m256i sum = ternary ? sums[p][g] : _mm256_sub_epi32(all, _mm256_slli_epi32(sums[p][g], 1));
            finish(sum, first, shape->outputs - first, &work->unit, identity, work->y + at, full);
#else
            if (!ternary)
                for (int o = 0; o < GROUP; o++) sums[p][g].of[o] = base[first + o] - 2 * sums[p][g].of[o];
            finish(sums[p][g].of, first, shape->outputs - first, &work->unit, identity, work->y + at);
#endif
        }
    }
}

INLINE void groups_of(const Work *work, const Shape *shape, int64_t image, int64_t y, int64_t x, int64_t x1,
                      int64_t group, const int64_t kernel, const int64_t words, const int groups, const int full,
                      const int ternary) {
    for (; x + PIXELS <= x1; x += PIXELS)
        tile(work, shape, image, y, x, group, kernel, words, PIXELS, groups, full, ternary);
    for (; x < x1; x++) tile(work, shape, image, y, x, group, kernel, words, 1, groups, full, ternary);
}

INLINE void segment(const Work *work, const Shape *shape, int64_t image, int64_t y, int64_t x0, int64_t x1,
                    const int64_t kernel, const int64_t words, const int ternary) {
    const int64_t whole = shape->outputs / GROUP;
    int64_t group = 0;
    for (; group + WIDE <= whole; group += WIDE)
        groups_of(work, shape, image, y, x0, x1, group, kernel, words, WIDE, 1, ternary);
    for (; group * GROUP < shape->outputs; group++)
        groups_of(work, shape, image, y, x0, x1, group, kernel, words, 1, 0, ternary);
}

/* y (B, H, W, O) from x (B, H, W, C).
 *
 * shift: (C,) added to x, or NULL. weight: [groups of GROUP outputs][kernel][kernel][words][GROUP]; weight_mask: the
 * same for weights other than zero, NULL if there are no zeros. base: (16, outputs rounded up), by border class.
 * space: room for two packed images. Returns 1 if the ternary way was taken. */
int32_t bq_binary_conv(const float *x, const Shape *shape, const float *shift, int32_t activation,
                       const uint64_t *weight, const uint64_t *weight_mask, const int32_t *base, const Unit *unit,
                       uint64_t *space, float *y, int32_t threads) {
    Shape own = *shape;
    if (own.kernel == 1) {
        own.width *= own.batch * own.height;
        own.batch = own.height = 1;
        while (own.width % 2 == 0 && own.width > SEGMENT) {
            own.width /= 2;
            own.height *= 2;
        }
    }
    const int64_t words = words_of(&own), pad = own.kernel / 2, row = (own.width + 2 * pad) * words;
    uint64_t *mask = space + own.batch * (own.height + 2 * pad) * row;
    int ternary = weight_mask != NULL || activation == STEP;
    if (ternary)
        pack(x, shift, &own, activation, space, mask, threads);
    else if (pack(x, shift, &own, activation, space, NULL, threads)) {
        ternary = 1;
        pack(x, shift, &own, activation, space, mask, threads);
    }
    const Work work = {space, mask, weight, weight_mask, base, *unit, y, row};
    const int64_t pieces = (own.width + SEGMENT - 1) / SEGMENT;
    PARALLEL(omp parallel for num_threads(threads) if (threads > 1))
    for (int64_t task = 0; task < own.batch * own.height * pieces; task++) {
        const int64_t line = task / pieces, x0 = task % pieces * SEGMENT;
        const int64_t x1 = x0 + SEGMENT < own.width ? x0 + SEGMENT : own.width;
        const int64_t image = line / own.height, y = line % own.height;
        if (ternary)
            segment(&work, &own, image, y, x0, x1, own.kernel, words, 1);
        else if (own.kernel == 1)
            segment(&work, &own, image, y, x0, x1, 1, words, 0);
        else
            segment(&work, &own, image, y, x0, x1, 3, words, 0);
    }
    return ternary;
}
