// What crates/pipeshard-sys sees of llama.cpp: bindgen reads this file.
#pragma once

#include "ggml.h"
#include "ggml-alloc.h"
#include "ggml-backend.h"
#include "ggml-backend-impl.h"
#include "ggml-cpu.h"
#include "gguf.h"
#include "llama.h"

#if __has_include("ggml-pipeshard.h")
#include "ggml-pipeshard.h"
#endif
#include "mtmd.h"
#include "mtmd-helper.h"
