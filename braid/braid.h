#pragma once

/// The promised interface of the library: what these headers declare keeps its meaning between
/// minor versions (docs/versioning.md). Reading order: a Context runs things; a ModelConfig says
/// what a Stack is made of; Model loads one from a directory; a Session talks to it.

#include "braid/core/context.h"
#include "braid/core/error.h"
#include "braid/core/sequence_batch.h"
#include "braid/infer/model.h"
#include "braid/infer/sampler.h"
#include "braid/infer/session.h"
#include "braid/model/config.h"
#include "braid/model/stack.h"
#include "braid/model/stack_spec.h"
#include "braid/model/tokenizer/tokenizer.h"
