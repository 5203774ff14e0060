// Tables whose columns sort.

/**
 * Fill a table.
 * @param columns {title, value(row), text(row) -> text or node, better: "higher" | "lower" | undefined, head}
 */
function fillTable(table, columns, rows) {
  const best = columns.map((column) => bestOf(column, rows));
  const body = element("tbody", {}, ...rows.map((row) => element("tr", {}, ...columns.map((column, index) => {
    const value = column.value(row);
    const absent = value === null || value === undefined;
    const style = absent ? "absent" : value === best[index] ? "best" : kindOf(column, rows);
    const cell = element(column.head ? "th" : "td", {scope: column.head && "row", class: style}, column.text(row));
    cell.sortValue = absent ? null : value;
    return cell;
  }))));
  const heads = columns.map((column, index) => element("th", {scope: "col", class: kindOf(column, rows)},
    element("button", {type: "button", onclick: () => sortBy(table, index)}, column.title)));
  table.replaceChildren(element("thead", {}, element("tr", {}, ...heads)), body);
}

function kindOf(column, rows) {
  return rows.some((row) => typeof column.value(row) === "string") ? "word" : null;
}

function bestOf(column, rows) {
  const values = rows.map(column.value).filter((value) => typeof value === "number");
  if (!column.better || values.length < 2) return undefined;
  return column.better === "higher" ? Math.max(...values) : Math.min(...values);
}

/** Sort by a column, descending the first time, then the other way round; absent values come last. */
function sortBy(table, index) {
  const heads = [...table.tHead.rows[0].cells];
  const descending = heads[index].getAttribute("aria-sort") !== "descending";
  heads.forEach((head) => head.removeAttribute("aria-sort"));
  heads[index].setAttribute("aria-sort", descending ? "descending" : "ascending");
  const body = table.tBodies[0];
  const value = (row) => row.cells[index].sortValue;
  const rows = [...body.rows].sort((first, second) => {
    const [left, right] = [value(first), value(second)];
    if (left === null || right === null) return (left === null) - (right === null);
    const order = typeof left === "number" ? left - right : String(left).localeCompare(String(right));
    return descending ? -order : order;
  });
  body.replaceChildren(...rows);
}

function fillResults(data) {
  const columns = [
    {title: "Run", head: true, value: (run) => run.name, text: (run) => run.name},
    {title: "Kind", value: (run) => run.kind, text: (run) => run.kind ?? "unknown"},
  ];
  for (const dataset of data.datasets) {
    for (const [name, metric] of Object.entries(data.metrics)) {
      const value = (run) => run.metrics[dataset.name]?.[name];
      columns.push({title: data.datasets.length > 1 ? `${dataset.name} ${name}` : name, better: metric.better, value,
        text: (run) => value(run)?.toFixed(metric.decimals) ?? "no reference"});
    }
  }
  columns.push({title: "Bytes", value: (run) => run.bytes,
    text: (run) => run.bytes?.toLocaleString("en-US") ?? "not counted"});
  columns.push({title: "Seconds per image", value: (run) => run.seconds,
    text: (run) => run.seconds?.toFixed(2) ?? "not measured"});
  fillTable(byId("results"), columns, data.runs);
  byId("conventions").append(...data.conventions.map((line) => element("li", {}, line)));
}
