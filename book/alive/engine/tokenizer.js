// pocket-gpt's tokenizer: one word, one token.

export class Tokenizer {
  constructor(ids) {  // {word: id}
    Object.assign(this, { ids, words: [] });
    for (const [word, id] of Object.entries(ids)) this.words[id] = word;
    this.unknownId = ids["<unk>"];
    this.endId = ids["<eos>"];
    this.beginId = ids["<bos>"];
  }

  split(text) { return text.trim().split(/\s+/).filter(Boolean); }
  tokens(text) { return this.split(text).map((word) => this.ids[word] ?? this.unknownId); }
  encode(text) { return [this.beginId, ...this.tokens(text)]; }
  decode(ids) { return ids.map((id) => this.words[id]).join(" "); }
  unknown(text) { return [...new Set(this.split(text).filter((word) => !(word in this.ids)))]; }

  // {prompt, answer} as {input_ids, labels}: learned is the answer, and that the text ends.
  example({ prompt, answer }) {
    const before = this.encode(prompt), after = [...this.tokens(answer), this.endId];
    return { input_ids: [...before, ...after], labels: [...before.map(() => -100), ...after] };
  }

  // As a reader types it: capital letters become small, and punctuation stands alone.
  tidy(text) { return text.toLowerCase().replace(/([.,!?:"])/g, " $1 ").replace(/\s+/g, " ").trim(); }
}
