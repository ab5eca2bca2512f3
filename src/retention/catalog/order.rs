//! Children before parents, over any graph of foreign keys: Tarjan's strongly connected
//! components (SIAM J. Comput. 1972), without recursion, so that no schema is too deep.

use std::collections::{BTreeMap, BTreeSet};

use super::Catalog;
use crate::retention::sql::TableName;

/// Groups of `names`, children first; a group of more than one is a circle.
pub(super) fn children_first(
    catalog: &Catalog,
    names: &BTreeSet<TableName>,
) -> Vec<Vec<TableName>> {
    let known: Vec<&TableName> = names.iter().filter(|n| catalog.table(n).is_some()).collect();
    let number: BTreeMap<&TableName, usize> =
        known.iter().enumerate().map(|(index, name)| (*name, index)).collect();
    // An edge from the parent to its child: components then come out children first.
    let edges: Vec<Vec<usize>> = known
        .iter()
        .map(|name| {
            let table = catalog.table(name);
            let keys = table.into_iter().flat_map(|table| &table.referenced_by);
            let children: BTreeSet<usize> =
                keys.filter_map(|key| number.get(&key.child).copied()).collect();
            children.into_iter().collect()
        })
        .collect();
    components(&edges)
        .into_iter()
        .map(|group| group.into_iter().map(|index| known[index].clone()).collect())
        .collect()
}

/// Strongly connected components, each after those it points to.
fn components(edges: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let count = edges.len();
    let mut search = Search {
        edges,
        seen_at: vec![None; count],
        low: vec![0; count],
        open: vec![false; count],
        stack: Vec::new(),
        clock: 0,
        found: Vec::new(),
    };
    for node in 0..count {
        if search.seen_at[node].is_none() {
            search.visit(node);
        }
    }
    search.found
}

struct Search<'a> {
    edges: &'a [Vec<usize>],
    seen_at: Vec<Option<usize>>,
    low: Vec<usize>,
    open: Vec<bool>,
    stack: Vec<usize>,
    clock: usize,
    found: Vec<Vec<usize>>,
}

impl Search<'_> {
    fn visit(&mut self, root: usize) {
        let mut path = vec![(root, 0)];
        self.enter(root);
        while let Some((node, next)) = path.pop() {
            if let Some(&target) = self.edges[node].get(next) {
                path.push((node, next + 1));
                match self.seen_at[target] {
                    None => {
                        self.enter(target);
                        path.push((target, 0));
                    }
                    Some(at) if self.open[target] => self.low[node] = self.low[node].min(at),
                    Some(_) => {}
                }
                continue;
            }
            if let Some(&(parent, _)) = path.last() {
                self.low[parent] = self.low[parent].min(self.low[node]);
            }
            if Some(self.low[node]) == self.seen_at[node] {
                self.close(node);
            }
        }
    }

    fn enter(&mut self, node: usize) {
        self.seen_at[node] = Some(self.clock);
        self.low[node] = self.clock;
        self.clock += 1;
        self.open[node] = true;
        self.stack.push(node);
    }

    fn close(&mut self, root: usize) {
        let mut group = Vec::new();
        while let Some(node) = self.stack.pop() {
            self.open[node] = false;
            group.push(node);
            if node == root {
                break;
            }
        }
        group.sort_unstable();
        self.found.push(group);
    }
}

#[cfg(test)]
mod tests {
    use super::components;

    #[test]
    fn a_tree_comes_leaves_first() {
        // 0 → 1 → 2, 0 → 2
        assert_eq!(components(&[vec![1, 2], vec![2], vec![]]), [vec![2], vec![1], vec![0]]);
    }

    #[test]
    fn a_circle_is_one_group_and_a_self_reference_is_alone() {
        let groups = components(&[vec![1], vec![2], vec![1, 3], vec![3]]);
        assert_eq!(groups, [vec![3], vec![1, 2], vec![0]]);
    }
}
