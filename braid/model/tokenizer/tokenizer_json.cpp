#include "braid/model/tokenizer/tokenizer_json.h"

#include "braid/core/error.h"
#include "braid/model/json.h"
#include "braid/model/tokenizer/json_fields.h"
#include "braid/model/tokenizer/parts.h"

namespace braid::tok {
namespace {

using nlohmann::json;

constexpr size_t kAddedBytesMax = 1024;  // of one added token: bounds the search for it

Vocabulary parse_vocabulary(const json& object) {
  Vocabulary out;
  out.reserve(object.size());
  std::vector<bool> taken;
  for (const auto& [token, value] : object.items()) {
    const auto id = static_cast<int32_t>(
        to_integer(value, "tokenizer.json: an id of model.vocab", 0, kIdsMax - 1));
    const auto index = static_cast<size_t>(id);
    if (index >= taken.size()) taken.resize(index + 1);
    check(!taken[index], ErrorKind::kFormat, "tokenizer.json: two tokens of model.vocab have id {}",
          id);
    taken[index] = true;
    out.emplace(token, id);
  }
  return out;
}

// Each merge is "left right" or ["left", "right"].
Bpe::Merges parse_merges(const json& array) {
  Bpe::Merges out;
  out.reserve(array.size());
  for (const json& merge : array) {
    if (merge.is_string()) {
      const auto& text = merge.get_ref<const std::string&>();
      if (text.starts_with("#version")) continue;
      const size_t space = text.find(' ');
      check(space != text.npos && text.find(' ', space + 1) == text.npos, ErrorKind::kFormat,
            "tokenizer.json: merge {} is not two tokens with one space between", out.size());
      out.emplace_back(text.substr(0, space), text.substr(space + 1));
    } else {
      check(merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string(),
            ErrorKind::kFormat, "tokenizer.json: merge {} is not a pair of tokens", out.size());
      out.emplace_back(merge[0].get<std::string>(), merge[1].get<std::string>());
    }
  }
  return out;
}

Bpe parse_bpe(const json& object, bool byte_level) {
  JsonFields fields(object, "tokenizer.json: model");
  const std::string type = fields.string("type", "BPE");
  check(type == "BPE", ErrorKind::kUnsupported, "tokenizer.json: model of type {} is not read",
        quote(type));
  BpeOptions options{.byte_level = byte_level,
                     .byte_fallback = fields.boolean("byte_fallback", false),
                     .fuse_unk = fields.boolean("fuse_unk", false),
                     .ignore_merges = fields.boolean("ignore_merges", false)};
  fields.expect("dropout", 0.0);
  fields.expect("continuing_subword_prefix", "");
  fields.expect("end_of_word_suffix", "");
  check(!byte_level || !options.byte_fallback, ErrorKind::kUnsupported,
        "tokenizer.json: byte_fallback together with a ByteLevel pre-tokenizer is not read");
  Vocabulary vocabulary = parse_vocabulary(fields.object("vocab"));
  check(!vocabulary.empty(), ErrorKind::kFormat, "tokenizer.json: model.vocab is empty");
  if (fields.find("unk_token")) {
    const std::string unk = fields.string("unk_token");
    const auto found = vocabulary.find(unk);
    check(found != vocabulary.end(), ErrorKind::kFormat,
          "tokenizer.json: unk_token {} is not in model.vocab", quote(unk));
    options.unk = found->second;
  }
  const Bpe::Merges merges = parse_merges(fields.array("merges"));
  fields.done();
  return Bpe(std::move(vocabulary), merges, options);
}

AddedToken parse_added_token(const json& object) {
  JsonFields fields(object, "tokenizer.json: added_tokens");
  AddedToken out;
  out.content = fields.string("content");
  out.id = static_cast<int32_t>(fields.integer("id", 0, kIdsMax - 1));
  out.special = fields.boolean("special", false);
  out.normalized = fields.boolean("normalized", !out.special);
  out.single_word = fields.boolean("single_word", false);
  out.lstrip = fields.boolean("lstrip", false);
  out.rstrip = fields.boolean("rstrip", false);
  fields.done();
  check(!out.content.empty() && out.content.size() <= kAddedBytesMax, ErrorKind::kFormat,
        "tokenizer.json: added token {} has {} bytes, want 1 to {}", out.id, out.content.size(),
        kAddedBytesMax);
  return out;
}

// All tokens of the file with the text each id stands for.
class TokenTable {
 public:
  TokenTable(const Vocabulary& vocabulary, DetokenizeRules rules) : out_(std::move(rules)) {
    for (const auto& [token, id] : vocabulary) out_.add_token(id, token, false);
  }
  void add(const AddedToken& token, const Vocabulary& vocabulary, Vocabulary& added) {
    const auto known = vocabulary.find(token.content);
    const bool same = known != vocabulary.end() && known->second == token.id;
    check(same || (known == vocabulary.end() && !out_.has(token.id)), ErrorKind::kFormat,
          "tokenizer.json: added token {} has id {}, which contradicts another token",
          quote(token.content), token.id);
    check(added.emplace(token.content, token.id).second, ErrorKind::kFormat,
          "tokenizer.json: added token {} is listed twice", quote(token.content));
    out_.add_token(token.id, token.content, token.special);
  }
  Detokenizer take() { return std::move(out_); }

 private:
  Detokenizer out_;
};

std::optional<int32_t> first_special(const std::vector<AddedToken>& tokens,
                                     std::initializer_list<std::string_view> names) {
  for (const std::string_view name : names) {
    for (const AddedToken& token : tokens) {
      if (token.special && token.content == name) return token.id;
    }
  }
  return std::nullopt;
}

void name_special_tokens(const std::vector<AddedToken>& tokens, Tokenizer::Parts& parts) {
  parts.bos = first_special(tokens, {"<s>", "<|begin_of_text|>", "<bos>"});
  parts.eos = first_special(tokens, {"</s>", "<|end_of_text|>", "<|endoftext|>", "<eos>"});
  if (!parts.prefix.empty()) parts.bos = parts.prefix.front();
  if (!parts.suffix.empty()) parts.eos = parts.suffix.back();
  parts.end_of_document = first_special(tokens, {kEndOfDocument});
  if (!parts.end_of_document) parts.end_of_document = parts.eos;
}

}  // namespace

std::unique_ptr<Tokenizer::Parts> parse_tokenizer_json(std::string_view text) {
  const json root = parse_json(text, "tokenizer.json");
  JsonFields fields(root, "tokenizer.json");
  auto parts = std::make_unique<Tokenizer::Parts>();
  fields.string("version", "1.0");
  fields.ignore("truncation");
  fields.ignore("padding");
  const auto component = [&](const char* key) {
    const json* found = fields.find(key);
    return found ? *found : json();
  };
  parts->normalizer = parse_normalizer(component("normalizer"));
  PreTokenizerSpec pre = parse_pre_tokenizer(component("pre_tokenizer"));
  parts->pre_tokenizer = std::move(pre.pre_tokenizer);
  const Template around = parse_post_processor(component("post_processor"));
  parts->prefix = around.prefix;
  parts->suffix = around.suffix;
  Bpe model = parse_bpe(fields.object("model"), pre.byte_level);

  std::vector<AddedToken> added;
  if (const json* list = fields.find("added_tokens")) {
    check(list->is_array(), ErrorKind::kFormat, "tokenizer.json: added_tokens is not an array");
    for (const json& token : *list) added.push_back(parse_added_token(token));
  }
  TokenTable table(model.vocabulary(), parse_decoder(component("decoder")));
  fields.done();
  for (const AddedToken& token : added) {
    table.add(token, model.vocabulary(), parts->added_ids);
    if (token.normalized) {
      parts->normalized_tokens.add(parts->normalizer.apply(token.content), token);
    } else {
      parts->raw_tokens.add(token.content, token);
    }
  }
  parts->detokenizer = table.take();
  for (const auto* side : {&parts->prefix, &parts->suffix}) {
    for (const int32_t id : *side) {
      check(parts->detokenizer.has(id), ErrorKind::kFormat,
            "tokenizer.json: post_processor adds id {}, which is no token", id);
    }
  }
  name_special_tokens(added, *parts);
  parts->model = std::move(model);
  parts->fingerprint = hash_bytes(text);
  return parts;
}

}  // namespace braid::tok
