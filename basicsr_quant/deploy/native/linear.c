/* y = quantized(norm(x)) W^T + b, (gelu), (+ residual), in blocks of rows that stay in the first cache. */
#include "linear.h"

/* y (rows, parts * outputs) from x (rows, inputs); residual has the shape of y, or is NULL. With `sums` the integer
 * sums are written there instead of y. Returns 0, or 1 if there is no memory. */
int32_t bq_linear(const float *x, int64_t rows, const Linear *layer, const float *residual, float *y, int32_t *sums,
                  int32_t threads) {
    const int64_t stride = layer->parts * layer->outputs, code_stride = code_stride_of(layer);
    const int64_t floats = layer->norm_weight ? ROWS * layer->inputs : 0;
    const size_t room = (size_t)(ROWS * code_stride + 4 * floats + 127) / 64 * 64;
    int failed = 0;
    PARALLEL(omp parallel num_threads(threads) if (threads > 1))
    {
        int32_t row_sums[ROWS];
        uint8_t *codes = aligned_alloc(64, room);
        if (!codes) {
            PARALLEL(omp atomic write)
            failed = 1;
        }
        PARALLEL(omp for)
        for (int64_t first = 0; first < rows; first += ROWS) {
            if (!codes) continue;
            const int64_t count = rows - first < ROWS ? rows - first : ROWS;
            Target target = {0};
            target.sums = sums ? sums + first * stride : NULL;
            target.y = y ? y + first * stride : NULL;
            target.residual = residual ? residual + first * stride : NULL;
            linear_on_rows(layer, x + first * layer->inputs, count, &target, codes,
                           (float *)(codes + ROWS * code_stride), row_sums);
        }
        free(codes);
    }
    return failed;
}

/* codes (count,) of x. */
void bq_quantize(const float *x, int64_t count, const Grid *grid, uint8_t *codes) {
    const int64_t whole = count / 16 * 16;
    uint8_t rest[16];
    quantize_row(x, whole, 1.0f, grid, codes);
    quantize_row(x + whole, count - whole, 1.0f, grid, rest);
    memcpy(codes + whole, rest, (size_t)(count - whole));
}

/* y (rows, outputs) from x (rows, outputs + 1): the last column times `factor` and `offset` (period, outputs), in turn,
 * are added to the others. */
void bq_add_sums(const float *x, int64_t rows, int64_t outputs, const float *factor, const float *offset,
                 int64_t period, float *y, int32_t threads) {
    PARALLEL(omp parallel for num_threads(threads) if (threads > 1))
    for (int64_t i = 0; i < rows; i++) {
        const float *from = x + i * (outputs + 1), *add = offset + i % period * outputs, sum = from[outputs];
        float *to = y + i * outputs;
        for (int64_t o = 0; o < outputs; o++) to[o] = add[o] + sum * factor[o] + from[o];
    }
}
