/* A whole block of a Swin transformer, window by window, so that everything between its input and its output stays in
 * the first two caches: z = x + proj(attention(qkv(norm(x)))), y = z + fc2(gelu(fc1(norm(z)))). */
#include "attention.h"
#include "linear.h"

typedef struct {
    const Linear *qkv, *proj, *fc1, *fc2;
    const Attention *attention;
} SwinBlock;

/* Room for one window. */
typedef struct {
    float *x, *z, *normalized;
    uint8_t *inputs, *parts, *mixed, *hidden;
    Head *head;
} Room;

/* Bytes from row to row of mixed values: a head writes whole words, so up to three behind the last code. */
INLINE int64_t mixed_stride_of(const SwinBlock *block) { return code_stride_of(block->proj) + 16; }

static size_t rounded_up(int64_t bytes) { return (size_t)(bytes + SLACK + 63) / 64 * 64; }

static uint8_t *make_room(const SwinBlock *block, Room *room) {
    const int64_t tokens = block->attention->tokens, floats = tokens * block->qkv->inputs * (int64_t)sizeof(float);
    const int64_t stride = code_stride_of(block->qkv);
    const size_t sizes[] = {rounded_up(floats), rounded_up(floats), rounded_up(floats), rounded_up(tokens * stride),
                            rounded_up(3 * tokens * stride), rounded_up(tokens * mixed_stride_of(block)),
                            rounded_up(tokens * code_stride_of(block->fc2)), rounded_up(sizeof(Head))};
    size_t total = 0;
    for (int i = 0; i < 8; i++) total += sizes[i];
    uint8_t *all = aligned_alloc(64, total), *at[8];
    if (!all) return NULL;
    memset(all, 0, total);
    for (int i = 0; i < 8; i++) at[i] = i ? at[i - 1] + sizes[i - 1] : all;
    *room = (Room){(float *)at[0], (float *)at[1], (float *)at[2], at[3], at[4], at[5], at[6], (Head *)at[7]};
    return all;
}

/* y, in the place of x, of the tokens of one window. */
static void run_window(const SwinBlock *block, const int32_t *regions, const Room *room) {
    const Attention *a = block->attention;
    const int64_t tokens = a->tokens, stride = code_stride_of(block->qkv), mixed_stride = mixed_stride_of(block);
    const int64_t hidden_stride = code_stride_of(block->fc2);
    int32_t row_sums[TOKENS];
    const Target parts = {.codes = room->parts, .grids = a->grids, .part_stride = tokens * stride, .row_stride = stride,
                          .first_factor = a->factor};
    linear_on_rows(block->qkv, room->x, tokens, &parts, room->inputs, room->normalized, row_sums);
    const Rows rows = {room->parts, room->parts + tokens * stride, room->parts + 2 * tokens * stride, stride,
                       room->mixed, block->proj->grids, NULL, mixed_stride};
    attend_window(a, &rows, regions, room->head);
    const Target middle = {.y = room->z, .residual = room->x};
    linear_on_codes(block->proj, 0, room->mixed, mixed_stride, tokens, &middle, row_sums);
    const Target hidden = {.codes = room->hidden, .grids = block->fc2->grids, .row_stride = hidden_stride,
                           .first_factor = 1.0f};
    linear_on_rows(block->fc1, room->z, tokens, &hidden, room->inputs, room->normalized, row_sums);
    const Target last = {.y = room->x, .residual = room->z};
    linear_on_codes(block->fc2, 0, room->hidden, hidden_stride, tokens, &last, row_sums);
}

/* y (B, H * W, C) from x, in raster order. Limits and result are those of bq_window_attention. */
int32_t bq_swin_block(const float *x, const Frame *frame, const SwinBlock *block, float *y, int32_t threads) {
    const Attention *a = block->attention;
    const int64_t tokens = a->tokens, channels = block->qkv->inputs;
    int failed = tokens % 16 || tokens > TOKENS || a->features > FEATURES || tokens != frame->window * frame->window;
    if (failed) return 1;
    PARALLEL(omp parallel num_threads(threads) if (threads > 1))
    {
        Room room = {0};
        uint8_t *all = make_room(block, &room);
        if (!all) {
            PARALLEL(omp atomic write)
            failed = 1;
        }
        PARALLEL(omp for)
        for (int64_t window = 0; window < frame->batch * (frame->height / frame->window) *
                                              (frame->width / frame->window); window++) {
            if (!all) continue;
            int64_t token[TOKENS];
            int32_t regions[TOKENS];
            const int several = place(frame, window, token, regions);
            const size_t row = (size_t)channels * sizeof(float);
            for (int64_t i = 0; i < tokens; i++) memcpy(room.x + i * channels, x + token[i] * channels, row);
            run_window(block, several ? regions : NULL, &room);
            for (int64_t i = 0; i < tokens; i++) memcpy(y + token[i] * channels, room.x + i * channels, row);
        }
        free(all);
    }
    return failed;
}
