// The chosen test image, large, beside the probabilities of its classes.
//
// data: src, alt, title, facts ([text, tone]), bars ({name, value, text, tone}), sentence

export default function (component) {
  const { data, parentElement } = component;
  const root = parentElement.querySelector(".pc");
  const words = make("div", "words");
  words.append(make("div", "title", data.title));
  const facts = make("div", "facts");
  for (const [text, tone] of data.facts) facts.append(make("span", `fact ${tone}`, text));
  words.append(facts);
  const bars = make("div", "bars");
  for (const one of data.bars) {
    const track = make("div", "track");
    const fill = make("i", one.tone);
    fill.style.width = `${100 * one.value}%`;
    track.append(fill);
    bars.append(make("span", `name ${one.tone}`, one.name), track, make("span", "value", one.text));
  }
  words.append(bars);
  root.replaceChildren(picture(data.src, data.alt, "big"), words);
}
