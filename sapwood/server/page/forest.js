// The tree of the cache as the server tells it, made into nodes that know their place.

/** A node for each twig. `row` and `rows` are its place from top to bottom, `start` and `end` its tokens' positions. */
export function forest({ twigs, holders }) {
  const nodes = twigs.parent.map((parent, at) => ({
    at,
    parent: null,
    children: [],
    page: twigs.page[at],
    pages: twigs.pages[at],
    tokens: twigs.tokens[at],
    users: twigs.users[at],
    leases: twigs.leases[at],
    hits: twigs.hits[at],
    ahead: twigs.ahead[at],
    more: twigs.more[at],
    label: twigs.label?.[at] ?? null,
    begin: twigs.begin?.[at] ?? null,
    start: 0,
  }));
  const roots = [];
  for (const [at, node] of nodes.entries()) {
    node.parent = nodes[twigs.parent[at]] ?? null;
    (node.parent?.children ?? roots).push(node);
    node.start = node.parent?.end ?? 0;
    node.end = node.reach = node.start + node.tokens;
  }
  for (const node of nodes.toReversed()) {
    const below = node.children.reduce((sum, child) => sum + child.rows, 0);
    node.rows = Math.max(1, below + Math.sqrt(node.more) / 2);
    node.reach = Math.max(node.reach, ...node.children.map(({ reach }) => reach));
  }
  let row = 0;
  for (const root of roots) row = place(root, row);
  return { nodes, roots, holders, rows: Math.max(1, row), reach: Math.max(1, ...roots.map(({ reach }) => reach)) };
}

function place(root, row) {
  const left = [root];
  root.row = row;
  while (left.length) {
    const node = left.pop();
    let next = node.row;
    for (const child of node.children) {
      child.row = next;
      next += child.rows;
      left.push(child);
    }
  }
  return row + root.rows;
}

/** A node and all that it hangs from, the root first. */
export function pathTo(node) {
  const path = [];
  for (let one = node; one; one = one.parent) path.unshift(one);
  return path;
}

/** The nodes that a text of these tokens goes through, told by the first tokens of each; and up to where it is there. */
export function pathOf(roots, tokens) {
  const path = [];
  let end = 0;
  for (let among = roots; among.length && end < tokens.length; ) {
    const [common, node] = among.map((one) => [alike(one.begin ?? [], tokens, end), one]).reduce((one, other) => (other[0] > one[0] ? other : one));
    if (!common) break;
    path.push(node);
    const whole = common === node.begin.length;
    end = Math.min(tokens.length, whole ? node.end : end + common);
    among = whole ? node.children : [];
  }
  return { path, end };
}

/** How many of the first tokens of a node stand in a text from a place on. */
function alike(begin, tokens, at) {
  const differs = begin.findIndex((token, index) => token !== tokens[at + index]);
  return differs < 0 ? begin.length : differs;
}

/** Where the next node in a direction is, as one goes through the tree with the arrow keys. */
export function neighbour(tree, node, key) {
  if (!node) return tree.roots.toSorted((one, other) => other.rows - one.rows)[0] ?? null;
  if (key === "ArrowRight") return node.children.toSorted((one, other) => other.rows - one.rows)[0] ?? node;
  if (key === "ArrowLeft") return node.parent ?? node;
  const depth = pathTo(node).length;
  const level = tree.nodes.filter((one) => pathTo(one).length === depth).sort((one, other) => one.row - other.row);
  return level[level.indexOf(node) + (key === "ArrowDown" ? 1 : -1)] ?? node;
}

/** The prefixes that have saved most. */
export function best(tree, most) {
  const saved = ({ hits, tokens }) => hits * tokens;
  return tree.nodes.filter(saved).sort((one, other) => saved(other) - saved(one)).slice(0, most);
}
