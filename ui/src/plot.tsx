// Lines over the last minutes. What a plot shows is also said in words: the legend has the value of each line, the
// latest or that under the pointer.

import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import uPlot from "uplot";
import "uplot/dist/uPlot.min.css";
import { clock } from "./format";
import { theme } from "./theme";
import { useStore } from "./store";

export interface Line {
  label: string;
  values: (number | null)[];
  /** Which of the colours, 1 to 5; dashes tell the lines apart without them. */
  tone: number;
}

/** Steps of an axis that counts: rounded ones in between would say what is not so. */
const WHOLE = [1, 2, 5].flatMap((one) => Array.from({ length: 12 }, (_, power) => one * 10 ** power)).sort((a, b) => a - b);
const HEIGHT = 190;
const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [4, 2]];
/** No plot is narrower in time, so that a first look is no wall. */
const SPAN_MIN_S = 60;

/** The axis of durations: powers of ten, from a little below the least to a little above the most. */
function decades(values: (number | null)[][]): [number, number] {
  const some = values.flat().filter((value): value is number => value !== null && value > 0);
  if (some.length === 0) return [10, 100_000];
  const low = Math.floor(Math.log10(some.reduce((a, b) => Math.min(a, b))));
  const high = Math.ceil(Math.log10(some.reduce((a, b) => Math.max(a, b))));
  return [10 ** low, 10 ** Math.max(high, low + 1)];
}

function powersOfTen(low: number, high: number): number[] {
  const found: number[] = [];
  for (let power = Math.round(Math.log10(low)); 10 ** power <= high * 1.001; power++) found.push(10 ** power);
  return found;
}

export function Plot({
  title,
  times,
  lines,
  format,
  log = false,
  children,
}: {
  title: string;
  times: number[];
  lines: Line[];
  format: (value: number | null) => string;
  log?: boolean;
  /** What can be chosen of it. */
  children?: ComponentChildren;
}) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const latest = useRef({ times, lines });
  latest.current = { times, lines };
  const [at, setAt] = useState<number | null>(null);
  const mode = useStore(theme);
  const id = useId();
  const labels = lines.map((line) => line.label).join();

  useEffect(() => {
    const element = place.current!;
    const style = getComputedStyle(document.documentElement);
    const colour = (name: string) => style.getPropertyValue(name).trim();
    const axis: uPlot.Axis = {
      stroke: colour("--dim"),
      font: `11px ${colour("--font")}`,
      grid: { stroke: colour("--line"), width: 1 },
      ticks: { show: false },
    };
    const made = new uPlot(
      {
        width: element.clientWidth || 300,
        height: HEIGHT,
        legend: { show: false },
        padding: [8, 20, 0, 0],
        cursor: { y: false, points: { size: 6 }, drag: { x: false, y: false }, sync: { key: "time" } },
        scales: {
          x: {
            time: true,
            range: (_, low, high) => {
              const end = high ?? Date.now() / 1000;
              return [Math.min(low ?? end, end - SPAN_MIN_S), end];
            },
          },
          y: log
            ? { distr: 3, range: () => decades(latest.current.lines.map((line) => line.values)) }
            : { range: (_, __, high) => [0, Math.max(1, (high ?? 0) * 1.1)] },
        },
        axes: [
          { ...axis, space: 70, size: 26, values: (_, ticks) => ticks.map((tick) => clock(tick * 1000)) },
          {
            ...axis,
            size: log ? 62 : 50,
            values: (_, ticks) => ticks.map((tick) => format(tick)),
            ...(log
              ? { splits: (_: uPlot, __: number, low: number, high: number) => powersOfTen(low, high) }
              : { incrs: WHOLE }),
          },
        ],
        series: [
          {},
          ...latest.current.lines.map((line, nth): uPlot.Series => ({
            label: line.label,
            stroke: colour(`--plot-${line.tone}`),
            width: 1.75,
            dash: DASHES[nth % DASHES.length]!,
            points: { show: false },
            spanGaps: false,
          })),
        ],
        hooks: { setCursor: [(self) => setAt(self.cursor.idx ?? null)] },
      },
      [latest.current.times, ...latest.current.lines.map((line) => line.values)],
      element,
    );
    plot.current = made;
    const sized = new ResizeObserver(() => made.setSize({ width: element.clientWidth, height: HEIGHT }));
    sized.observe(element);
    return () => {
      sized.disconnect();
      made.destroy();
      plot.current = null;
    };
  }, [mode, labels, log]);

  useEffect(() => plot.current?.setData([times, ...lines.map((line) => line.values)]), [times, lines]);

  const time = at === null ? undefined : times[at];
  return (
    <figure class="plot" aria-labelledby={id}>
      <figcaption>
        <span id={id}>
          {title} <span class="dim">{time === undefined ? "" : `at ${clock(time * 1000)}`}</span>
        </span>
        {children}
      </figcaption>
      <div ref={place} aria-hidden="true" class="canvas" />
      <dl class="legend">
        {lines.map((line, nth) => (
          <div key={line.label}>
            <dt>
              <svg width="22" height="8" aria-hidden="true">
                <line
                  x1="0"
                  x2="22"
                  y1="4"
                  y2="4"
                  class={`stroke-${line.tone}`}
                  stroke-width="2"
                  stroke-dasharray={DASHES[nth % DASHES.length]!.join(" ")}
                />
              </svg>
              {line.label}
            </dt>
            <dd>{format((at === null ? line.values.at(-1) : line.values[at]) ?? null)}</dd>
          </div>
        ))}
      </dl>
    </figure>
  );
}
