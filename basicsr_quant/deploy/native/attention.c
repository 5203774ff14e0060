/* Attention in (shifted) windows alone, on numbers; nobody rolls, cuts or joins windows. */
#include "attention.h"

/* out (B, H * W, C) from qkv (B, H * W, 3 C), both in raster order. A window has a multiple of 16 tokens, at most
 * TOKENS; a head at most FEATURES features. Returns 0, or 1 if that is not so or there is no memory. */
int32_t bq_window_attention(const float *qkv, const Frame *frame, const Attention *a, float *out, int32_t threads) {
    const int64_t tokens = a->tokens, channels = a->heads * a->features, stride = (channels + 15) / 16 * 16;
    const size_t codes_room = (size_t)(3 * tokens * stride + 2 * SLACK) / 64 * 64;
    const size_t room = codes_room + ((size_t)(tokens * channels) * sizeof(float) + 63) / 64 * 64;
    int failed = tokens % 16 || tokens > TOKENS || a->features > FEATURES || tokens != frame->window * frame->window;
    if (failed) return 1;
    PARALLEL(omp parallel num_threads(threads) if (threads > 1))
    {
        Head *h = aligned_alloc(64, sizeof(Head));
        uint8_t *codes = aligned_alloc(64, room);
        if (!h || !codes) {
            PARALLEL(omp atomic write)
            failed = 1;
        }
        PARALLEL(omp for)
        for (int64_t window = 0; window < frame->batch * (frame->height / frame->window) *
                                              (frame->width / frame->window); window++) {
            if (!h || !codes) continue;
            int64_t token[TOKENS];
            int32_t regions[TOKENS];
            const int several = place(frame, window, token, regions);
            for (int64_t i = 0; i < tokens; i++)
                for (int part = 0; part < 3; part++)
                    quantize_row(qkv + (3 * token[i] + part) * channels, channels, part ? 1.0f : a->factor,
                                 a->grids + part, codes + (part * tokens + i) * stride);
            float *mixed = (float *)(codes + codes_room);
            const Rows rows = {codes, codes + tokens * stride, codes + 2 * tokens * stride, stride, NULL, NULL, mixed,
                               channels};
            attend_window(a, &rows, several ? regions : NULL, h);
            for (int64_t i = 0; i < tokens; i++)
                memcpy(out + token[i] * channels, mixed + i * channels, (size_t)channels * sizeof(float));
        }
        free(h);
        free(codes);
    }
    return failed;
}
