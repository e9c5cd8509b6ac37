// The story world's grammar: the same texts from the same seeds as pedagogic_peft.course.pocket writes them.
// Every function draws in the order of its Python twin.

export class World {
  constructor(world) {  // world.toml, as JSON
    Object.assign(this, { world, words: world.words, names: [...world.words.girls, ...world.words.boys] });
    this.verdicts = [world.verdict.good, world.verdict.bad];
    this.styles = { ...world.styles, ...world.new_styles };
  }

  wordsOf(kind) { return this.words[`${kind}s`]; }

  draw(rng) {
    const [A, B, name] = rng.sample(this.names, 3), slots = { A, B, name };
    const several = { object: 4, colour: 2, size: 2, feeling: 3, number: 2, vessel: 3 };
    for (const kind of ["animal", "day", "place", "hideout", "food", "weather", "herd", ...Object.keys(several)])
      rng.sample(this.wordsOf(kind), several[kind] ?? 1).forEach((word, i) => { slots[kind + (i ? i + 1 : "")] = word; });
    [slots.kitchen, slots.kitchen2] = rng.sample(this.words.kitchen, 2);
    [slots.cook, slots.cook2, slots.cook3] = rng.sample(this.words.cooking, 3);
    return slots;
  }

  // --- stories

  story(rng) {
    const middle = ["pet", "hide", "eat", "count", "give", "feel", "talk"];
    const opening = [["go", "own", "meet"], ["weather", "go", "meet"], ["go", "weather", "own", "meet"]];
    const beats = [...rng.choice(opening), ...rng.sample(middle, rng.randint(1, 4))];
    if (rng.randint(0, 1)) beats.push("end");
    const slots = this.draw(rng), sentences = [], questions = [];
    for (const beat of beats.map((name) => this.world.beats[name])) {
      const sentence = fill(rng.choice(beat.forms), slots, rng), told = sentence.split(" ");
      sentences.push(sentence);
      for (const [q, a] of beat.questions) {
        const answer = format(a, slots);
        if (told.includes(answer)) questions.push({ text: format(q, slots), answer });
      }
    }
    return { sentences, questions, text: sentences.join(" ") };
  }

  // --- reviews

  opinion(rng, good, negated) {
    const forms = this.world.review[good ? "praise" : "blame"][negated ? "negated" : "plain"];
    const slots = { g: rng.choice(this.words.good), b: rng.choice(this.words.bad) }, form = rng.choice(forms);
    return fill(form, { ...slots, n: rng.choice(this.words.reviewed) }, rng);
  }

  contrast(rng, good, negation, forms) {
    const x = this.opinion(rng, good, rng.random() < negation), y = this.opinion(rng, !good, rng.random() < negation);
    return format(rng.choice(forms), { x: x.replace(/ \.$/, ""), y: y.replace(/ \.$/, "") });
  }

  // --- tasks: n examples {prompt, answer} of a seed

  sentiment = (rng) => {
    const good = rng.random() < 0.5, kind = rng.random();
    const judged = kind < 0.5 ? this.contrast(rng, good, 0, this.world.verdict.contrast) : this.opinion(rng, good, kind < 0.75);
    const remark = fill(rng.choice(this.world.review.openings), this.draw(rng), rng), before = rng.random() < 0.5 ? [remark] : [];
    return { prompt: [...before, judged, this.world.verdict.opening].join(" "), answer: this.verdicts[good ? 0 : 1] };
  };

  questions = (rng) => {
    const story = this.story(rng), { text, answer } = rng.choice(story.questions);
    return { prompt: `${story.text} ${text}`, answer };
  };

  // About half of these the story does not answer; such a question is of another story, about nobody in this one.
  openQuestions = (rng) => {
    const told = this.story(rng), other = this.story(rng);
    if (rng.random() < 0.5) {
      const { text, answer } = rng.choice(told.questions);
      return { prompt: `${told.text} ${text}`, answer };
    }
    const answered = told.questions.map((q) => q.text), words = told.text.split(" ");
    const present = this.names.filter((name) => words.includes(name));
    const foreign = other.questions.map((q) => q.text)
      .filter((text) => !answered.includes(text) && !text.split(" ").some((word) => present.includes(word)));
    return { prompt: `${told.text} ${rng.choice(foreign)}`, answer: this.world.unanswered.answer };
  };

  summary = (rng) => {
    const story = this.story(rng), met = story.questions.find((q) => q.text.includes("who met"));
    const A = met.answer, B = met.text.split(" ")[2], place = story.questions.find((q) => q.text === `where was ${A} ?`).answer;
    return { prompt: `${story.text} ${this.world.summary.opening}`, answer: format(this.world.summary.form, { A, B, place }) };
  };

  translation = (rng) => {
    const { toli } = this.world, name = rng.choice(this.names), english = { name }, foreign = { name };
    for (const kind of ["verb", "object", "colour"]) [english[kind], foreign[kind]] = rng.choice(Object.entries(toli[`${kind}s`]));
    return { prompt: `${format(toli.english, english)} ${toli.opening}`, answer: format(toli.toli, foreign) };
  };

  styled = (style, sentences) => (rng) => {
    const [first, ...rest] = this.story(rng).sentences.filter((s) => !s.includes('"'));
    return { prompt: first, answer: rest.slice(0, sentences).map((s) => this.inStyle(s, style, rng)).join(" ") };
  };

  inStyle(sentence, style, rng) {
    const form = this.styles[style];
    return `${rng.choice(form.before)}${sentence.replace(/[."!? ]+$/, "")}${form.after}`;
  }

  // The share of a text's finished sentences that begin and end as the style asks: [of the style, all].
  wears(text, style) {
    const form = this.styles[style], sentences = [];
    let words = [];
    for (const word of text.split(" ")) {
      if (".!?".includes(word)) { sentences.push(`${words.join(" ")} ${word}`); words = []; } else words.push(word);
    }
    return [sentences.filter((s) => form.before.some((b) => s.startsWith(b)) && s.endsWith(form.after)).length, sentences.length];
  }
}

export const examples = (write, n, rng) => Array.from({ length: n }, () => write(rng));

function format(form, slots) { return form.replace(/\{(\w+)\}/g, (_, name) => slots[name]); }

// Choose each of the alternatives, (a|b), and fill the slots.
function fill(form, slots, rng) {
  const parts = form.split(/(\([^()]*\))/).map((part) => {
    const choices = part.startsWith("(") ? part.slice(1, -1).split("|") : [part];
    return choices.length > 1 ? rng.choice(choices) : choices[0];
  });
  return format(parts.join(""), slots).split(/\s+/).filter(Boolean).join(" ");
}
