#include "braid/core/error.h"
#include "braid/model/json.h"
#include "braid/model/tokenizer/json_fields.h"
#include "braid/model/tokenizer/parts.h"
#include "braid/model/tokenizer/tokenizer_json.h"

namespace braid::tok {
namespace {

using nlohmann::json;

[[noreturn]] void refuse_type(const JsonFields& fields, std::string_view type) {
  fail(ErrorKind::kUnsupported, "{}: type {} is not read", fields.where(), quote(type));
}

// The components of `json`: itself, or those of a Sequence, which holds no sequences.
std::vector<const json*> components(const json& object, const char* where, const char* list) {
  if (!object.is_object() || object.value("type", json()) != "Sequence") return {&object};
  JsonFields fields(object, where);
  fields.string("type");
  const json& array = fields.array(list);
  fields.done();
  check(array.size() <= kComponentsMax, ErrorKind::kFormat,
        "{} has {} components, at most {} are read", where, array.size(), kComponentsMax);
  std::vector<const json*> out;
  for (const json& component : array) out.push_back(&component);
  return out;
}

std::string literal(JsonFields& fields, const char* key) {
  std::string text = fields.string(key);
  check(text.size() <= kLiteralBytesMax, ErrorKind::kFormat,
        "{}.{} has {} bytes, at most {} are read", fields.where(), key, text.size(),
        kLiteralBytesMax);
  return text;
}

struct Pattern {
  std::string text;
  bool is_regex;
  Regex regex() const { return is_regex ? Regex(text) : Regex::literal(text); }
};

// {"String": TEXT} or {"Regex": PATTERN}
Pattern parse_pattern(JsonFields& fields) {
  JsonFields pattern(fields.object("pattern"), fields.where() + ".pattern");
  const bool is_regex = pattern.find("Regex") != nullptr;
  Pattern out{literal(pattern, is_regex ? "Regex" : "String"), is_regex};
  pattern.done();
  check(!out.text.empty(), ErrorKind::kFormat, "{}.pattern is empty", fields.where());
  return out;
}

SplitBehavior parse_behavior(JsonFields& fields, std::string_view default_name) {
  constexpr std::pair<std::string_view, SplitBehavior> kNames[] = {
      {"Removed", SplitBehavior::kRemoved},
      {"Isolated", SplitBehavior::kIsolated},
      {"MergedWithPrevious", SplitBehavior::kMergedWithPrevious},
      {"MergedWithNext", SplitBehavior::kMergedWithNext},
      {"Contiguous", SplitBehavior::kContiguous},
  };
  const std::string name =
      default_name.empty() ? fields.string("behavior") : fields.string("behavior", default_name);
  for (const auto& [known, behavior] : kNames) {
    if (name == known) return behavior;
  }
  fail(ErrorKind::kUnsupported, "{}: behavior {} is not read", fields.where(), quote(name));
}

NormalizerStep parse_normalizer_step(const json& object) {
  JsonFields fields(object, "normalizer");
  const std::string type = fields.string("type");
  NormalizerStep step = UnicodeForm::kNfc;
  if (type == "NFC") {
  } else if (type == "NFD") {
    step = UnicodeForm::kNfd;
  } else if (type == "NFKC") {
    step = UnicodeForm::kNfkc;
  } else if (type == "NFKD") {
    step = UnicodeForm::kNfkd;
  } else if (type == "Prepend") {
    step = Prepend{literal(fields, "prepend")};
  } else if (type == "Lowercase") {
    step = Lowercase{};
  } else if (type == "StripAccents") {
    step = StripAccents{};
  } else if (type == "Strip") {
    step = StripSpace{fields.boolean("strip_left", true), fields.boolean("strip_right", true)};
  } else if (type == "Replace") {
    const Pattern from = parse_pattern(fields);
    std::string to = literal(fields, "content");
    if (from.is_regex) {
      step = ReplacePattern{from.regex(), std::move(to)};
    } else {
      step = ReplaceText{from.text, std::move(to)};
    }
  } else {
    refuse_type(fields, type);
  }
  fields.done();
  return step;
}

Metaspace::Prefix parse_prepend_scheme(JsonFields& fields) {
  const bool add_prefix_space = fields.boolean("add_prefix_space", true);
  const std::string name = fields.string("prepend_scheme", add_prefix_space ? "always" : "never");
  fields.ignore("str_rep");  // the replacement again, in old files
  if (name == "always") return Metaspace::Prefix::kAlways;
  if (name == "first") return Metaspace::Prefix::kFirst;
  if (name == "never") return Metaspace::Prefix::kNever;
  fail(ErrorKind::kUnsupported, "{}: prepend_scheme {} is not read", fields.where(), quote(name));
}

std::string parse_replacement(JsonFields& fields) {
  std::string replacement = literal(fields, "replacement");
  check(!replacement.empty() &&
            replacement.size() == sequence_length(static_cast<unsigned char>(replacement[0])),
        ErrorKind::kFormat, "{}.replacement is not one character", fields.where());
  return replacement;
}

Metaspace parse_metaspace(JsonFields& fields) {
  Metaspace step{.replacement = parse_replacement(fields),
                 .prefix = parse_prepend_scheme(fields),
                 .split = {}};
  if (fields.boolean("split", true)) {
    step.split = Split{Regex::literal(step.replacement), SplitBehavior::kMergedWithNext};
  }
  return step;
}

void parse_pre_tokenizer_step(const json& object, PreTokenizerSpec& out) {
  JsonFields fields(object, "pre_tokenizer");
  const std::string type = fields.string("type");
  check(!out.byte_level, ErrorKind::kUnsupported, "pre_tokenizer: {} after ByteLevel is not read",
        quote(type));
  PreTokenizer& steps = out.pre_tokenizer;
  if (type == "ByteLevel") {
    if (fields.boolean("add_prefix_space", true)) steps.add(PrefixSpace{});
    if (fields.boolean("use_regex", true)) steps.add(Split{Regex(kByteLevelPattern)});
    fields.boolean("trim_offsets", true);  // concerns offsets only
    out.byte_level = true;
  } else if (type == "Split") {
    const Pattern pattern = parse_pattern(fields);
    const SplitBehavior behavior = parse_behavior(fields, "");
    steps.add(Split{pattern.regex(), behavior, fields.boolean("invert", false)});
  } else if (type == "Metaspace") {
    steps.add(parse_metaspace(fields));
  } else if (type == "Digits") {
    const bool individual = fields.boolean("individual_digits", false);
    steps.add(Split{Regex(R"(\p{N})"),
                    individual ? SplitBehavior::kIsolated : SplitBehavior::kContiguous});
  } else if (type == "Whitespace") {  // joiners are word characters here
    steps.add(Split{Regex(R"([\w\x{200C}\x{200D}]+|[^\w\x{200C}\x{200D}\s]+)"),
                    SplitBehavior::kRemoved, /*invert=*/true});
  } else if (type == "WhitespaceSplit") {
    steps.add(Split{Regex(R"(\s)"), SplitBehavior::kRemoved});
  } else if (type == "Punctuation") {
    steps.add(Split{Regex(R"([\p{P}$+<=>\^`|~])"), parse_behavior(fields, "Isolated")});
  } else {
    refuse_type(fields, type);
  }
  fields.done();
}

// Which part of the chain has been reached: token by token, bytes, the joined text.
enum class DecoderStage { kTokens, kBytes, kFused };

void parse_strip(JsonFields& fields, DecoderStage stage, DetokenizeRules& out) {
  constexpr int64_t kCountMax = 1000;
  DetokenizeRules::StripStep step{.content = literal(fields, "content")};
  step.start = static_cast<size_t>(fields.integer("start", 0, kCountMax));
  step.stop = static_cast<size_t>(fields.integer("stop", 0, kCountMax));
  check(!step.content.empty(), ErrorKind::kFormat, "decoder: Strip of nothing");
  if (stage == DecoderStage::kTokens) {
    out.steps.push_back(std::move(step));
    return;
  }
  check(stage == DecoderStage::kFused && step.stop == 0 && out.strip.start == 0,
        ErrorKind::kUnsupported, "decoder: only one Strip at the start is read after Fuse");
  out.strip = std::move(step);
}

void parse_decoder_step(const json& object, DecoderStage& stage, DetokenizeRules& out) {
  JsonFields fields(object, "decoder");
  const std::string type = fields.string("type");
  const bool by_token =
      type == "Replace" || type == "Metaspace" || type == "ByteLevel" || type == "ByteFallback";
  check(!by_token || stage == DecoderStage::kTokens, ErrorKind::kUnsupported,
        "decoder: {} after bytes or Fuse is not read", type);
  if (type == "Replace") {
    const Pattern from = parse_pattern(fields);
    check(!from.is_regex, ErrorKind::kUnsupported, "decoder: Replace of a Regex is not read");
    out.steps.push_back(ReplaceText{from.text, literal(fields, "content")});
  } else if (type == "Metaspace") {
    const std::string replacement = parse_replacement(fields);
    const bool prefix = parse_prepend_scheme(fields) != Metaspace::Prefix::kNever;
    fields.boolean("split", true);
    out.steps.push_back(DetokenizeRules::MetaspaceStep{replacement, prefix});
  } else if (type == "ByteLevel") {
    fields.boolean("add_prefix_space", true);
    fields.boolean("use_regex", true);
    fields.boolean("trim_offsets", true);
    out.bytes = DetokenizeRules::Bytes::kByteLevel;
    stage = DecoderStage::kBytes;
  } else if (type == "ByteFallback") {
    out.bytes = DetokenizeRules::Bytes::kByteFallback;
    stage = DecoderStage::kBytes;
  } else if (type == "Fuse") {
    stage = DecoderStage::kFused;
  } else if (type == "Strip") {
    parse_strip(fields, stage, out);
  } else {
    refuse_type(fields, type);
  }
  fields.done();
}

// The ids of each special token that a template may name.
std::vector<int32_t> template_ids(const json& tokens, const std::string& name) {
  const auto found = tokens.find(name);
  check(found != tokens.end(), ErrorKind::kFormat,
        "post_processor: the template names {}, which is not in special_tokens", quote(name));
  JsonFields fields(*found, "post_processor.special_tokens");
  fields.ignore("id");
  fields.ignore("tokens");
  std::vector<int32_t> ids;
  for (const json& id : fields.array("ids")) {
    ids.push_back(static_cast<int32_t>(to_integer(id, "post_processor: id", 0, kIdsMax - 1)));
  }
  fields.done();
  return ids;
}

Template parse_template(JsonFields& fields) {
  const json& tokens = fields.object("special_tokens");
  const json& single = fields.array("single");
  fields.ignore("pair");  // texts come one at a time
  check(single.size() <= kComponentsMax, ErrorKind::kFormat, "post_processor: {} parts, at most {}",
        single.size(), kComponentsMax);
  Template out;
  int texts = 0;
  for (const json& part : single) {
    JsonFields item(part, "post_processor.single");
    if (const json* special = item.find("SpecialToken")) {
      const auto id = JsonFields(*special, "post_processor.single").string("id");
      const std::vector<int32_t> ids = template_ids(tokens, id);
      std::vector<int32_t>& side = texts == 0 ? out.prefix : out.suffix;
      side.insert(side.end(), ids.begin(), ids.end());
    } else {
      const auto id = JsonFields(item.object("Sequence"), "post_processor.single").string("id");
      check(id == "A", ErrorKind::kFormat, "post_processor: text {} in the template of one text",
            quote(id));
      ++texts;
    }
    item.done();
  }
  check(texts == 1, ErrorKind::kFormat,
        "post_processor: the template has the text {} times, want 1", texts);
  return out;
}

}  // namespace

Normalizer parse_normalizer(const json& object) {
  Normalizer out;
  if (object.is_null()) return out;
  for (const json* step : components(object, "normalizer", "normalizers")) {
    out.add(parse_normalizer_step(*step));
  }
  return out;
}

PreTokenizerSpec parse_pre_tokenizer(const json& object) {
  PreTokenizerSpec out;
  if (object.is_null()) return out;
  for (const json* step : components(object, "pre_tokenizer", "pretokenizers")) {
    parse_pre_tokenizer_step(*step, out);
  }
  return out;
}

DetokenizeRules parse_decoder(const json& object) {
  DetokenizeRules out;
  if (object.is_null()) {
    out.separator.assign(1, ' ');
    return out;
  }
  DecoderStage stage = DecoderStage::kTokens;
  for (const json* step : components(object, "decoder", "decoders")) {
    parse_decoder_step(*step, stage, out);
  }
  return out;
}

Template parse_post_processor(const json& object) {
  Template out;
  if (object.is_null()) return out;
  for (const json* step : components(object, "post_processor", "processors")) {
    JsonFields fields(*step, "post_processor");
    const std::string type = fields.string("type");
    if (type == "TemplateProcessing") {
      const Template inner = parse_template(fields);
      out.prefix.insert(out.prefix.begin(), inner.prefix.begin(), inner.prefix.end());
      out.suffix.insert(out.suffix.end(), inner.suffix.begin(), inner.suffix.end());
    } else if (type == "ByteLevel") {  // concerns offsets only
      fields.boolean("add_prefix_space", true);
      fields.boolean("trim_offsets", true);
      fields.boolean("use_regex", true);
    } else {
      refuse_type(fields, type);
    }
    fields.done();
  }
  return out;
}

}  // namespace braid::tok
