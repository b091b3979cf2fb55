// What holds of every page, as far as a script sees it: names, headings, contrast, room. Runs in the page.

export function faults() {
  const found = [];
  const shown = (element) => element.checkVisibility({ visibilityProperty: true, opacityProperty: true });
  const tell = (element) => {
    const name = element.id ? `#${element.id}` : `.${element.className}`;
    return `<${element.tagName.toLowerCase()}${name}> ${element.textContent.trim().slice(0, 40)}`;
  };
  // Every control has a name.
  for (const control of document.querySelectorAll(
    "a[href], button, input, select, textarea, [role=log], pre[tabindex]",
  )) {
    if (!shown(control)) continue;
    const labels = [...(control.labels ?? [])].map((label) => label.textContent).join("");
    const own = ["INPUT", "SELECT", "TEXTAREA"].includes(control.tagName) ? "" : control.textContent;
    const name = control.getAttribute("aria-label") || labels || own || control.title;
    if (!name.trim()) found.push(`no name: ${tell(control)}`);
  }
  // One title, and no level of headings left out.
  const headings = [...document.querySelectorAll("h1, h2, h3, h4")]
    .filter(shown)
    .filter((one) => !one.closest("dialog"));
  if (headings.filter((one) => one.tagName === "H1").length !== 1) found.push("not exactly one h1");
  headings.reduce((before, one) => {
    const level = Number(one.tagName[1]);
    if (level > before + 1) found.push(`a level is left out before ${tell(one)}`);
    return level;
  }, 0);
  // Ids are given once; what is named by one exists.
  const ids = [...document.querySelectorAll("[id]")].map((one) => one.id);
  for (const id of new Set(ids.filter((id, at) => ids.indexOf(id) !== at)))
    found.push(`the id ${id} stands twice`);
  for (const one of document.querySelectorAll("[aria-labelledby], [aria-describedby], [for]")) {
    for (const name of ["aria-labelledby", "aria-describedby", "for"]) {
      const id = one.getAttribute(name);
      if (id && !document.getElementById(id)) found.push(`${name} names nothing: ${tell(one)}`);
    }
  }
  // Landmarks, and tables that say what they are of.
  for (const landmark of ["main", "nav", "header"]) {
    if (!document.querySelector(landmark)) found.push(`there is no ${landmark}`);
  }
  for (const table of document.querySelectorAll("table:not([class^=u-])")) {
    if (!table.caption?.textContent) found.push("a table has no caption");
  }
  // Nothing makes the page scroll sideways.
  const wide = document.documentElement.scrollWidth;
  if (wide > innerWidth) {
    const most = [...document.querySelectorAll("main *, header *")].filter(
      (one) => shown(one) && one.getBoundingClientRect().right > innerWidth + 1,
    );
    found.push(`the page is ${wide} wide, the window ${innerWidth}: ${most.slice(-1).map(tell)}`);
  }
  // Text stands out from what is behind it: 4.5 to 1, large text 3 to 1.
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const parse = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const luminance = ([r, g, b]) =>
    [r, g, b]
      .map((part) => part / 255)
      .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4))
      .reduce((sum, part, at) => sum + part * [0.2126, 0.7152, 0.0722][at], 0);
  const behind = (element) => {
    for (let one = element; one; one = one.parentElement) {
      const colour = parse(getComputedStyle(one).backgroundColor);
      if (colour[3] > 250) return colour;
    }
    return [255, 255, 255, 255];
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const told = new Set();
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    if (
      !walker.currentNode.data.trim() ||
      !element ||
      !shown(element) ||
      element.closest(".hidden, svg, noscript, option")
    )
      continue;
    const style = getComputedStyle(element);
    const [a, b] = [luminance(parse(style.color)), luminance(behind(element))].sort((x, y) => y - x);
    const size = parseFloat(style.fontSize);
    const least = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700) ? 3 : 4.5;
    const ratio = (a + 0.05) / (b + 0.05);
    const text = `contrast ${ratio.toFixed(1)} of ${tell(element)}`;
    if (ratio < least && !told.has(text)) {
      told.add(text);
      found.push(text);
    }
  }
  return found;
}
