// A safetensors header of any content is refused with an Error, or every tensor it describes lies
// inside the file and touches no other.
#include "braid/model/safetensors.h"

#include <cstring>
#include <string>

#include "tests/fuzz/fuzz.h"

namespace {

void read(std::string_view file) {
  braid::fuzz::accepted([&] {
    const auto bytes = std::as_bytes(std::span(file.data(), file.size()));
    const braid::SafetensorsHeader header = braid::parse_safetensors(bytes, "f");
    size_t end = 0, sum = 0;
    for (const braid::SafetensorsEntry& entry : header.entries) {
      braid::fuzz::require(end == 0 || entry.offset == end,
                           "tensors that do not follow each other");
      const auto wanted =
          static_cast<size_t>(entry.shape.checked_count()) * braid::size_of(entry.dtype);
      braid::fuzz::require(entry.bytes == wanted, "bytes that are not those of the shape");
      end = entry.offset + entry.bytes;
      braid::fuzz::require(end <= file.size(), "a tensor outside the file");
      for (const std::byte b : bytes.subspan(entry.offset, entry.bytes)) {
        sum += static_cast<size_t>(b);
      }
    }
    braid::fuzz::require(header.entries.empty() || end == file.size(), "bytes left over");
    volatile size_t keep = sum;  // so that the reads happen
    (void)keep;
  });
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  read(braid::fuzz::text(data, size));
  // Also as the header alone, behind a length that fits, before as many bytes as it begins with:
  // otherwise hardly a mutation would get past the length.
  if (size < 2) return 0;
  const size_t data_bytes = data[0] + (size_t{data[1]} << 8);
  const uint64_t length = size - 2;
  std::string file(8, '\0');
  std::memcpy(file.data(), &length, sizeof length);
  file.append(reinterpret_cast<const char*>(data) + 2, length);
  file.resize(file.size() + data_bytes, 'x');
  read(file);
  return 0;
}
