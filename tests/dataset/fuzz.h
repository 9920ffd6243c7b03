// SPDX-License-Identifier: Apache-2.0
// Copyright 2026 the Swin IPU trainer authors
//
// Random numbers of the fuzz programs, which a seed repeats.

#pragma once

#include <stdint.h>

static uint64_t state;

static uint32_t draw(void) { // splitmix64
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return (uint32_t)(z >> 32);
}

static int upto(int most) { return 1 + (int)(draw() % (uint32_t)most); }
