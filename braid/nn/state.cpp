#include "braid/nn/state.h"

#include <algorithm>
#include <cassert>

#include "braid/core/device_storage.h"

namespace braid {
namespace {

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

int64_t ring_pages(const SlotSpec& spec) {
  return ceil_div(spec.window + kRingSlack, kPageTokens) + 1;
}

// Blocks that exist once `tokens` tokens have been read.
int64_t block_count(const SlotSpec& spec, int64_t tokens) {
  if (spec.kind == SlotKind::kFixed) return 1;
  const int64_t pages = ceil_div(tokens, kPageTokens);
  return spec.kind == SlotKind::kRing ? std::min(pages, ring_pages(spec)) : pages;
}

size_t bytes_of_block(const SlotSpec& spec) {
  const int64_t elements =
      spec.kind == SlotKind::kFixed ? spec.shape.count() : spec.shape.count() * kPageTokens;
  return static_cast<size_t>(elements) * size_of(spec.dtype);
}

}  // namespace

int64_t state_bytes(const StateSpec& spec, int64_t tokens) {
  int64_t bytes = 0;
  for (const SlotSpec& slot : spec) {
    bytes += block_count(slot, tokens) * static_cast<int64_t>(bytes_of_block(slot));
  }
  return bytes;
}

State::State(std::shared_ptr<DeviceApi> api, std::vector<StateSpec> specs)
    : api_(std::move(api)), specs_(std::move(specs)) {
  for (const StateSpec& spec : specs_) slots_.emplace_back(spec.size());
}

int64_t State::bytes() const {
  size_t bytes = 0;
  for (const auto& sublayer : slots_) {
    for (const Slot& slot : sublayer) {
      for (const auto& block : slot.blocks) bytes += block->bytes();
    }
  }
  return static_cast<int64_t>(bytes);
}

size_t State::block_bytes(size_t sublayer, size_t slot) const {
  return bytes_of_block(specs_[sublayer][slot]);
}

std::shared_ptr<Storage> State::allocate(size_t bytes) const {
  return std::make_shared<DeviceStorage>(api_, bytes);
}

// Copy on write: after this the block belongs to this state alone.
void State::own(std::shared_ptr<Storage>& block, size_t bytes) {
  if (block == nullptr) {
    block = allocate(bytes);
    api_->fill_bytes(block->data(), 0, bytes);
  } else if (block.use_count() > 1) {
    auto copy = allocate(bytes);
    api_->copy(copy->data(), block->data(), bytes);
    block = std::move(copy);
  }
}

float* State::fixed(size_t sublayer, size_t slot) {
  assert(specs_[sublayer][slot].kind == SlotKind::kFixed);
  Slot& s = slots_[sublayer][slot];
  s.blocks.resize(1);
  own(s.blocks[0], block_bytes(sublayer, slot));
  return static_cast<float*>(s.blocks[0]->data());
}

PageTable State::pages(size_t sublayer, size_t slot, int64_t length) {
  const SlotSpec& spec = specs_[sublayer][slot];
  assert(spec.kind != SlotKind::kFixed);
  Slot& s = slots_[sublayer][slot];
  const int64_t count = block_count(spec, position_ + length);
  if (static_cast<int64_t>(s.blocks.size()) < count) s.blocks.resize(static_cast<size_t>(count));
  const auto have = static_cast<int64_t>(s.blocks.size());
  // A growing slot may have pages past the end after a rollback; they are simply written again.
  const int64_t total = spec.kind == SlotKind::kRing ? ring_pages(spec) : have;
  const int64_t first = position_ / kPageTokens;
  const int64_t last = (position_ + std::max<int64_t>(length, 1) - 1) / kPageTokens;
  for (int64_t page = first; page <= std::min(last, first + total - 1); ++page) {
    auto& block = s.blocks[static_cast<size_t>(page % total)];
    own(block, block_bytes(sublayer, slot));
  }
  s.table.clear();
  for (const auto& block : s.blocks) s.table.push_back(block ? block->data() : nullptr);
  s.table.resize(static_cast<size_t>(total), nullptr);
  return {.pages = s.table.data(), .count = total};
}

State::Mark State::mark() const {
  Mark mark{.position = position_, .fixed = {}};
  for (size_t i = 0; i < slots_.size(); ++i) {
    for (size_t j = 0; j < slots_[i].size(); ++j) {
      if (specs_[i][j].kind != SlotKind::kFixed) continue;
      const auto& blocks = slots_[i][j].blocks;
      mark.fixed.push_back(blocks.empty() ? nullptr : blocks[0]);
    }
  }
  return mark;
}

void State::restore(const Mark& mark) {
  check(mark.position <= position_ && position_ - mark.position <= kMaxReplay,
        "state: cannot return from position {} to {}, want at most {} tokens back", position_,
        mark.position, kMaxReplay);
  size_t next = 0;
  for (size_t i = 0; i < slots_.size(); ++i) {
    for (size_t j = 0; j < slots_[i].size(); ++j) {
      if (specs_[i][j].kind != SlotKind::kFixed) continue;
      slots_[i][j].blocks.assign(1, mark.fixed[next++]);
      if (slots_[i][j].blocks[0] == nullptr) slots_[i][j].blocks.clear();
    }
  }
  position_ = mark.position;
}

std::vector<Tensor> State::blocks(size_t sublayer, size_t slot) const {
  const SlotSpec& spec = specs_[sublayer][slot];
  Shape shape = spec.shape;
  if (spec.kind != SlotKind::kFixed) {
    shape = Shape{kPageTokens * spec.shape.count()};
  }
  const int64_t row = shape.rank() == 0 ? 1 : shape.count(1);
  std::vector<Tensor> out;
  const int64_t wanted = blocks_wanted(sublayer, slot, position_);
  const auto& blocks = slots_[sublayer][slot].blocks;
  for (int64_t i = 0; i < wanted; ++i) {
    auto block = static_cast<size_t>(i) < blocks.size() ? blocks[static_cast<size_t>(i)] : nullptr;
    if (block == nullptr) {
      block = allocate(block_bytes(sublayer, slot));
      api_->fill_bytes(block->data(), 0, block->bytes());
    }
    out.emplace_back(block, 0, shape, spec.dtype, row);
  }
  return out;
}

int64_t State::blocks_wanted(size_t sublayer, size_t slot, int64_t position) const {
  return block_count(specs_[sublayer][slot], position);
}

void State::load(int64_t position, const std::vector<std::vector<std::vector<Tensor>>>& blocks) {
  assert(blocks.size() == slots_.size());
  for (size_t i = 0; i < slots_.size(); ++i) {
    for (size_t j = 0; j < slots_[i].size(); ++j) {
      Slot& slot = slots_[i][j];
      slot.blocks.clear();
      check(static_cast<int64_t>(blocks[i][j].size()) == blocks_wanted(i, j, position),
            ErrorKind::kFormat, "state: slot {} of sublayer {} has {} blocks, want {}",
            specs_[i][j].name, i, blocks[i][j].size(), blocks_wanted(i, j, position));
      for (const Tensor& block : blocks[i][j]) {
        check(block.bytes() == block_bytes(i, j), ErrorKind::kFormat,
              "state: slot {} of sublayer {} has a block of {} bytes, want {}", specs_[i][j].name,
              i, block.bytes(), block_bytes(i, j));
        auto storage = allocate(block.bytes());
        api_->copy_from_host(storage->data(), block.raw(), block.bytes());
        slot.blocks.push_back(std::move(storage));
      }
    }
  }
  position_ = position;
}

std::vector<float*> LayerState::fixed(size_t slot) const {
  check(tensors_ == nullptr,
        "state: a sublayer overwrites slot {}, want a sublayer that differentiates its state",
        slot);
  std::vector<float*> out;
  for (State* state : states_) out.push_back(state->fixed(sublayer_, offset_ + slot));
  return out;
}

std::vector<PageTable> LayerState::pages(size_t slot) const {
  check(tensors_ == nullptr,
        "state: slot {} keeps a row a token, want a sublayer that differentiates its state", slot);
  std::vector<PageTable> out;
  for (size_t s = 0; s < states_.size(); ++s) {
    out.push_back(
        states_[s]->pages(sublayer_, offset_ + slot, batch_.length(static_cast<int64_t>(s))));
  }
  return out;
}

Tensor LayerState::initial(size_t slot) const {
  assert(has_tensors());
  const size_t i = offset_ + slot;
  return i < tensors_->initial.size() ? tensors_->initial[i] : Tensor{};
}

void LayerState::set_last(size_t slot, Tensor value) const {
  assert(has_tensors());
  const size_t i = offset_ + slot;
  if (tensors_->last.size() <= i) tensors_->last.resize(i + 1);
  tensors_->last[i] = std::move(value);
}

LayerState LayerState::branch(size_t offset) const {
  LayerState copy = *this;
  copy.offset_ = offset;
  return copy;
}

}  // namespace braid
